"""Torchvision's networks for segmentation: which of their outputs is studied, and what they state about their input."""

from __future__ import annotations

import pytest
import torch
from torchvision import models

import pathlens
from pathlens.models.catalogs import torchvision_entry


def test_every_network_for_segmentation_has_its_entry() -> None:
    for name in models.list_models(module=models.segmentation):
        weights = models.get_model_weights(name).DEFAULT
        spec = torchvision_entry(name).input_spec(torch.nn.Identity(), f"torchvision {weights}")
        assert spec.input_shape == (3, 520, 520)
        assert spec.mean == pytest.approx((0.485, 0.456, 0.406))


def test_lesions_are_of_the_logits_at_full_size() -> None:
    loaded = pathlens.load_model("torchvision:lraspp_mobilenet_v3_large", "random", num_classes=3)
    assert loaded.num_classes == 3
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    masks = torch.randint(3, (2, 64, 64), generator=generator)
    view = pathlens.find_blocks(loaded.model, images, additions="all")
    table = pathlens.delete_blocks(view, [(images, masks)], blocks=[0, len(view) - 1], engine="plain")
    assert table.provenance["task"] == "segmentation"
    for row in table.rows:
        with pathlens.deleted(view, [] if row["block"] is None else [row["block"]]), torch.no_grad():
            logits = loaded.model(images)["out"]
        assert row["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), masks).item(), rel=1e-5)
        assert row["error"] == pytest.approx((logits.argmax(1) != masks).double().mean().item(), abs=1e-3)


def test_the_auxiliary_head_is_not_used() -> None:
    net = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=2, aux_loss=True).eval()
    view = pathlens.find_blocks(net, torch.zeros(2, 3, 32, 32))
    trace = view.chain().trace
    assert trace.shape(trace.main)[1:] == (2, 32, 32)
    assert len(view) == 16
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        logits = view.head(view.run(view.chain().stem(images)[0]))
        torch.testing.assert_close(logits, net(images)["out"], rtol=1e-4, atol=1e-5)
