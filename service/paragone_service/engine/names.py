"""The words of ``--devices``: which devices a model has a replica on. Nothing here needs torch."""

import re

__all__ = ["device_names", "torch_name"]

ALL = "all"
_MOST = 64
_CPUS = re.compile(r"cpu(?:\*(\d{1,4}))?")
_GPU = re.compile(r"cuda(?::\d{1,3})?")


def device_names(text: str) -> tuple[str, ...]:
    """Return the devices that ``cuda:0,cuda:1`` or ``cpu*2`` names, each once; ``all`` stays what it is.

    Replicas on one CPU are called ``cpu:0``, ``cpu:1``, …; to torch they are all ``cpu``.

    Raises:
        ValueError: if a name is none, comes twice, or there is more than one kind: dtypes and kernels differ among
            kinds, and so would the numbers.

    >>> device_names("cuda:0,cuda:1"), device_names("cpu*2")
    (('cuda:0', 'cuda:1'), ('cpu:0', 'cpu:1'))
    """
    words = [word.strip() for word in text.split(",")]
    if words == [ALL]:
        return (ALL,)
    names: list[str] = []
    for word in words:
        cpus = _CPUS.fullmatch(word)
        if cpus is not None:
            count = int(cpus[1] or 1)
            if not 1 <= count <= _MOST:
                raise ValueError(f"{word!r}: from 1 to {_MOST} replicas share a CPU")
            names += ["cpu"] if count == 1 else [f"cpu:{number}" for number in range(count)]
        elif _GPU.fullmatch(word):
            names.append("cuda:0" if word == "cuda" else word)
        else:
            raise ValueError(f"{word!r} is no device: write all, or cuda:0,cuda:1, or cpu*2")
    if len({name.partition(":")[0] for name in names}) > 1:
        raise ValueError(f"{text!r}: all devices of a model have to be of one kind, as its numbers would differ")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{text!r}: {twice[0]} comes twice; two replicas on one GPU would only share it")
    return tuple(names)


def torch_name(device: str) -> str:
    """Return what torch calls a device."""
    return "cpu" if device.startswith("cpu") else device
