"""The settings: where they come from, what is refused, and how that is said."""

from pathlib import Path

import pytest

from paragone_models.files.sources import HOSTED
from paragone_service.api_keys import plain_key
from paragone_service.config import ConfigError
from paragone_service.model_settings import ModelSettings
from paragone_service.settings_sources import load_settings, parse_model


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "paragone.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_without_anything_the_built_ins_are_hosted_on_loopback():
    settings = load_settings({})
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert {name: model.source for name, model in settings.models.items()} == {
        name: f"builtin:{name}" for name in HOSTED
    }
    assert settings.default_model == "mini-general-preference"


def test_flags_win_over_the_environment_and_that_over_the_file(toml, monkeypatch):
    path = toml('port = 1\nlog_level = "debug"\ndtype = "float16"')
    monkeypatch.setenv("PARAGONE_PORT", "2")
    monkeypatch.setenv("PARAGONE_LOG_LEVEL", "error")
    settings = load_settings({"port": 3}, path)
    assert (settings.port, settings.log_level, settings.dtype) == (3, "error", "float16")


def test_the_models_of_a_stronger_source_replace_the_others(toml):
    path = toml('[models.b]\nsource = "b"\ndtype = "bfloat16"\n[models.a]\nsource = "a"')
    assert list(load_settings({}, path).models) == ["b", "a"]
    assert load_settings({}, path).default_model == "b"
    assert list(load_settings({"models": {"c": ModelSettings(source="c")}}, path).models) == ["c"]


def test_a_key_of_a_stronger_source_replaces_the_other_kind_of_key(toml, monkeypatch):
    path = toml('api_key_file = "/nowhere"')
    monkeypatch.setenv("PARAGONE_API_KEY", "from-the-environment")
    assert load_settings({}, path).read_api_keys() == (plain_key("from-the-environment"),)


def test_other_variables_of_the_environment_do_not_matter(monkeypatch):
    monkeypatch.setenv("PARAGONE_URL", "http://the-client-reads-this")
    load_settings({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hots = 'x'", "unknown key 'hots': did you mean 'host'?"),
        ("zzz = 1", "unknown key 'zzz': known are host, port, models"),
        ("[models.a]\nsource = 'a'\ndtpye = 'auto'", "unknown key 'models.a.dtpye': did you mean 'dtype'?"),
        ("[models.a]\nkind = 'auto'", "models.a.source: Field required"),
        ("port = 70000", "port: Input should be less than or equal to 65535 (it is 70000)"),
        ("max_batch_tokens = 0", "max_batch_tokens: give a number of tokens, at least 1, or auto (it is 0)"),
        ("max_batch_tokens = 'fast'", "at least 1, or auto (it is 'fast')"),
        ("log_level = 'loud'", "log_level: Input should be 'debug', 'info', 'warning' or 'error' (it is 'loud')"),
        ("[models.'a/b']\nsource = 'a'", "model name 'a/b': only letters, digits"),
        ("api_key = 'k'\napi_key_file = 'f'", "api_key and api_key_file are both set: keep one"),
        ("host = '0.0.0.0'", "host 0.0.0.0 can be reached by others and there is no key: set --api-key"),
        ("host = 'judge.example.org'", "host judge.example.org can be reached by others"),
        ("port = ", "is not TOML"),
        ("models = {}", "models: Dictionary should have at least 1 item"),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(toml, text, message):
    with pytest.raises(ConfigError) as caught:
        load_settings({}, toml(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "budget"), [("'auto'", "auto"), ("512", 512)])
def test_the_budget_of_a_batch_is_a_count_or_found_by_a_warm_up(toml, text, budget):
    assert load_settings({}, toml(f"max_batch_tokens = {text}")).max_batch_tokens == budget
    assert load_settings({"max_batch_tokens": str(budget)}).max_batch_tokens == budget


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load_settings({}, tmp_path / "none.toml")


def test_models_in_the_environment_that_are_no_json_are_refused(monkeypatch):
    monkeypatch.setenv("PARAGONE_MODELS", "judge=x")
    with pytest.raises(ConfigError, match="the environment cannot be read"):
        load_settings({})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_no_key(host):
    assert load_settings({"host": host}).read_api_keys() == ()


def test_with_a_key_every_address_may_be_listened_on():
    assert load_settings({"host": "0.0.0.0", "api_key": "k"}).read_api_keys() == (plain_key("k"),)


def test_a_key_is_read_from_its_file_and_never_shown(tmp_path):
    path = tmp_path / "key"
    path.write_text("from-the-file\n")
    settings = load_settings({"api_key_file": path, "redis_url": "redis://:hidden@localhost"})
    assert settings.read_api_keys() == (plain_key("from-the-file"),)
    assert "hidden" not in repr(settings)
    assert "sesame" not in repr(load_settings({"api_key": "sesame"}))


@pytest.mark.parametrize("key", ["", "two words", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused(tmp_path, key):
    path = tmp_path / "key"
    path.write_text(key)
    with pytest.raises(ConfigError, match="the API key is empty or has characters"):
        load_settings({"api_key_file": path}).read_api_keys()


def test_a_key_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"api_key_file .* cannot be read"):
        load_settings({"api_key_file": tmp_path / "none"}).read_api_keys()


def test_lists_are_written_with_commas_in_flags_and_environment_and_as_lists_in_the_file(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    path.write_text('trusted_proxies = ["10.0.0.0/8"]\n')
    monkeypatch.setenv("PARAGONE_ALLOWED_HOSTS", "judge.example, localhost")
    settings = load_settings({}, path)
    assert settings.allowed_hosts == ("judge.example", "localhost")
    assert settings.trusted_proxies == ("10.0.0.0/8",)
    with pytest.raises(ConfigError, match="'proxy' is no address and no network"):
        load_settings({"trusted_proxies": "proxy"})


def test_a_secret_of_the_cache_is_read_from_its_file_and_a_short_one_is_refused(tmp_path):
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef\n")
    assert len(load_settings({"cache_secret_file": path}).read_cache_secret()) == 32
    assert load_settings({}).read_cache_secret() == b""
    path.write_text("0123456789abcde\n")
    with pytest.raises(ConfigError, match="holds 15 bytes, and 16 are the least"):
        load_settings({"cache_secret_file": path}).read_cache_secret()


@pytest.mark.parametrize(
    ("text", "name", "source"),
    [
        ("judge=Skywork/Skywork-Reward-V2-Qwen3-0.6B", "judge", "Skywork/Skywork-Reward-V2-Qwen3-0.6B"),
        (
            "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
            "Skywork-Reward-V2-Qwen3-0.6B",
            "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
        ),
        ("builtin:mini-bradley-terry", "mini-bradley-terry", "builtin:mini-bradley-terry"),
        ("./runs/judge/", "judge", "./runs/judge/"),
        ("/data/lr=3e-5/judge", "judge", "/data/lr=3e-5/judge"),
    ],
)
def test_a_model_flag_is_a_name_and_a_source(text, name, source):
    assert parse_model(text) == (name, ModelSettings(source=source))


def test_a_model_flag_takes_every_setting_of_a_model():
    text = (
        "judge=owner/model,kind=bradley-terry,head=lm-head-row-0,max_length=512,temperature=0.5,trust_remote_code=true,"
        'revision=v1,dtype=bfloat16,weights={"a": 0.5, "b": -1},special_tokens=parse,reasoning=strip,'
        "chat_template=/data/one,two/chat.jinja"
    )
    name, settings = parse_model(text)
    assert name == "judge"
    assert settings == ModelSettings(
        source="owner/model",
        kind="bradley-terry",
        head="lm-head-row-0",
        max_length=512,
        temperature=0.5,
        trust_remote_code=True,
        revision="v1",
        dtype="bfloat16",
        weights={"a": 0.5, "b": -1.0},
        special_tokens="parse",
        reasoning="strip",
        chat_template="/data/one,two/chat.jinja",
    )
    assert parse_model("judge=m,weights=[1, 2]")[1].weights == (1.0, 2.0)


@pytest.mark.parametrize("source", ["/data/one,two", "/data/one, two=3", "/data/lr=3e-5,4", "/data/a=b"])
def test_a_comma_without_a_key_behind_it_is_part_of_the_source(source):
    assert parse_model(f"judge={source},dtype=float32") == ("judge", ModelSettings(source=source, dtype="float32"))


def test_settings_may_follow_a_bare_source():
    name, settings = parse_model("builtin:mini-regression,kind=regression")
    assert (name, settings.kind) == ("mini-regression", "regression")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("judge=m,temprature=2", "unknown key 'models.judge.temprature': did you mean 'temperature'?"),
        ("judge=m,kind=oracle", "models.judge.kind: Input should be "),
        ("judge=m,max_length=0", "models.judge.max_length: Input should be greater than or equal to 1 (it is '0')"),
        ("judge=m,temperature=", "models.judge.temperature: Input should be a valid number"),
        ("judge=m,trust_remote_code=perhaps", "models.judge.trust_remote_code: Input should be a valid boolean"),
        ("judge=m,dtype=float32,dtype=bfloat16", "dtype is given twice"),
        ("judge=m,source=n", "source is given twice"),
    ],
)
def test_a_setting_of_a_model_flag_that_cannot_be_used_is_named(text, message):
    with pytest.raises(ConfigError) as refusal:
        parse_model(text)
    assert message in str(refusal.value)


def test_a_source_without_a_usable_name_is_refused():
    with pytest.raises(ConfigError, match="write NAME=SOURCE"):
        parse_model("/data/ein modell")
