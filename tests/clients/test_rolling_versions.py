"""A new version of the model, one replica after the other, behind the real proxy: no answer is of both."""

import shutil
import threading
import time

import httpx2
import pytest
from processes import Redis, Server, chat_tokenizer, ended, write_model
from safetensors.torch import load_file, save_file
from topology import Proxy

from paragone import Client, ParagoneError
from paragone.exceptions import OracleChangedError
from paragone_models import load_model
from paragone_service.api_keys import hash_of

KEY = "boss"
ITEMS = [(f"What of number {place}?", f"It is {place} or more." * (1 + place % 3)) for place in range(48)]


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """A folder with the models ``old`` and ``new``, which differ in their head."""
    root = tmp_path_factory.mktemp("versions")
    old = write_model(root / "old", chat_tokenizer(), kind="bradley-terry")
    shutil.copytree(old, root / "new")
    for file in (root / "new").glob("*.safetensors"):
        tensors = load_file(file)
        scaled = {name: 1.5 * tensor if "value_head" in name else tensor for name, tensor in tensors.items()}
        save_file(scaled, file, metadata={"format": "pt"})
    return root


@pytest.fixture(scope="module")
def rewards(versions):
    """The rewards of the items by the identity of the model."""
    models = [load_model(versions / name, name="m", device="cpu") for name in ("old", "new")]
    return {model.identity: [float(model.score(item[0], [item[1]]).rewards[0]) for item in ITEMS] for model in models}


@pytest.fixture(scope="module")
def topology(versions):
    keys = versions / "keys"
    keys.write_text(f"ops:{hash_of(KEY)} admin=yes\n")
    with Redis() as redis:
        flags = [
            "--model", f"m={versions / 'old'}", "--models-dir", str(versions), "--device", "cpu",
            "--api-key-file", str(keys), "--redis-url", redis.url,
        ]  # fmt: skip
        replicas = [Server(*flags) for _ in range(2)]
        proxy = Proxy(replicas, log=versions / "proxy.log")
        with ended(*replicas, proxy):
            for replica in replicas:
                replica.launch()
            for replica in replicas:
                replica.recover()
            proxy.start()
            yield replicas, proxy


class Asking:
    """A thread that asks one address all the time, and keeps which model answered and what was no answer of it."""

    def __init__(self, url, rewards) -> None:
        self.identities: list[str] = []
        self.faults: list[object] = []
        self._url, self._rewards = url, rewards
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int) -> None:
        """Wait for so many answers more."""
        end, deadline = len(self.identities) + count, time.monotonic() + 120
        while len(self.identities) < end and not self.faults:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _ask(self) -> None:
        with Client(self._url, api_key=KEY) as client:
            start = 0
            while not self._stop.is_set():
                start = (start + 5) % 40
                try:
                    answer = client.rewards(ITEMS[start : start + 8])
                except ParagoneError as error:
                    self.faults.append(error)
                    return
                wanted = self._rewards[answer.identity][start : start + 8]
                given = [row.reward for row in answer.rewards]
                if given != pytest.approx(wanted, abs=1e-4):
                    self.faults.append((answer.identity, given, wanted))
                self.identities.append(answer.identity)


def load(replica, source) -> str:
    answer = httpx2.post(
        f"{replica.url}/v1/models/m:load", json={"source": source}, headers={"authorization": f"Bearer {KEY}"},
        timeout=120, trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.json()["identity"]


def test_a_new_version_takes_over_replica_by_replica_and_never_inside_an_answer(topology, rewards):
    replicas, proxy = topology
    old, new = rewards
    with (
        Asking(proxy.url, rewards) as through,
        Asking(replicas[0].url, rewards) as first,
        Asking(replicas[1].url, rewards) as second,
    ):
        everybody = (through, first, second)
        for one in everybody:
            one.more(10)
        assert load(replicas[0], "new") == new
        for one in everybody:
            one.more(10)
        # Each prompt has its replica, so the parts of one batch are answered by both versions: the client says so.
        with (
            Client(proxy.url, api_key=KEY, max_items_per_request=1) as client,
            pytest.raises(OracleChangedError, match="the identity changed within one batch"),
        ):
            client.rewards(ITEMS)
        # Of a group with a member at each version the later one is refused, and the other waits for it in vain.
        assert sorted(split_group(replicas)) == ["cohort_conflict", "cohort_incomplete"]
        assert load(replicas[1], "new") == new
        for one in everybody:
            one.more(10)
    assert [one.faults for one in everybody] == [[], [], []]
    for one in (first, second):
        at = one.identities.index(new)
        assert set(one.identities[:at]) == {old}
        assert set(one.identities[at:]) == {new}, "a replica went back to the old version"
    assert set(through.identities) == {old, new}
    assert through.identities[-1] == new
    with Client(proxy.url, api_key=KEY, max_items_per_request=1) as client:
        assert client.rewards(ITEMS).identity == new


def split_group(replicas) -> list[str]:
    """Send one member of a group to each replica, and return the codes with which they are refused."""
    codes: list[str] = []

    def ask(slot: int) -> None:
        with Client(replicas[slot].url, api_key=KEY) as client:
            try:
                client.cohort("Which?", f"Answer {slot}.", group="split", slot=slot, size=2, deadline_s=2)
            except ParagoneError as error:
                codes.append(str(error.code))

    members = [threading.Thread(target=ask, args=(slot,)) for slot in range(2)]
    for member in members:
        member.start()
    for member in members:
        member.join()
    return codes
