import pytest

from paragone import AsyncClient, Client


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "127.0.0.1:8000"}, "not an http:// or https:// address"),
        ({"url": "ftp://host"}, "not an http:// or https:// address"),
        ({"api_key": ""}, "api_key"),
        ({"api_key": "a\nb"}, "api_key"),
        ({"api_key": "kéy"}, "api_key"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"retries": -1}, "retries=-1"),
        ({"max_items_per_request": 0}, "max_items_per_request=0"),
        ({"max_bytes_per_request": 0}, "max_bytes_per_request=0"),
        ({"concurrency": 0}, "concurrency=0"),
    ],
)
def test_an_argument_out_of_its_range_is_refused_by_name(kind, arguments, words):
    with pytest.raises(ValueError, match=words):
        kind(**arguments)


def test_a_refused_key_is_not_repeated():
    with pytest.raises(ValueError, match="api_key") as caught:
        Client(api_key="my-secret-key ")
    assert "my-secret-key" not in str(caught.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_repr_tells_the_address_and_hides_the_key(kind):
    text = repr(kind("http://host:1/", api_key="my-secret-key", model="m"))
    assert text == f"{kind.__name__}(url='http://host:1', model='m')"
