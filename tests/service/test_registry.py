"""What the registry loads: heads that were saved alone share the backbone that they name."""

from paragone_models.files.backbones import reference_to, save_head
from paragone_models.spec import ModelSpec
from paragone_service.config import Settings
from paragone_service.hosting import load_models
from tests.models import tiny


def test_heads_of_one_backbone_share_it(tmp_path):
    specs = {
        "one": ModelSpec(kind="bradley-terry", dimension=1, max_length=tiny.POSITIONS),
        "two": ModelSpec(kind="general-preference", dimension=4, temperature=0.1, max_length=tiny.POSITIONS),
    }
    whole = tiny.save_own(tmp_path / "whole", specs["one"])
    for name, spec in specs.items():
        save_head(tmp_path / name, tiny.make_network(spec).head.state_dict(), spec, reference_to(str(whole)))
    sources = {name: {"source": str(tmp_path / name)} for name in specs}
    loaded = load_models(Settings(models=sources, device="cpu", dtype="float32"))
    assert loaded["one"].network.backbone is loaded["two"].network.backbone
    assert loaded["one"].kind != loaded["two"].kind
