"""Optimiser groups, learning rates of every schedule, refusals, and what a resumed run keeps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from tasks.backbones import create_classifier, freeze, head_parameters
from tasks.optim import Optim, describe, effective_lr
from tasks.optimizers import build_optimizer
from tasks.pyramid import create_pyramid
from tasks.schedules import build_scheduler, lr_factor, warmup_steps

TOTAL, PER_EPOCH = 40, 4
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"warmup_epochs": 1.0, "min_lr_ratio": 0.1},
    "poly": {"warmup_epochs": 0.5},
    "step": {"step_epochs": [1.0, 2.5], "gamma": 0.5},
    "one_cycle": {},
    "constant": {"warmup": 0.5},
    "plateau": {},
}
EXPECTED_AFTER_10 = {
    "cosine": 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 6 / 36)),
    "poly": (1 - 8 / 38) ** 0.9,
    "step": 0.25,
    "one_cycle": 1 + (1 / 25 - 1) * 0.5 * (1 + math.cos(math.pi * 10 / 11)),
    "constant": 11 / 21,
    "plateau": 1.0,
}


def run(net: nn.Module, optim: Optim, steps: int = 10, **kwargs: Any) -> tuple[torch.optim.Optimizer, Any]:
    optimizer = build_optimizer(net, optim, 256, **kwargs)
    scheduler, interval = build_scheduler(optimizer, optim, TOTAL, PER_EPOCH)
    assert interval == ("plateau" if optim.schedule == "plateau" else "step")
    for _ in range(steps):
        optimizer.step()
        if interval == "step":
            scheduler.step()
    return optimizer, scheduler


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "cifar_resnet20"])
def test_rate_of_each_group_after_ten_steps_with_layer_decay(schedule: str, name: str) -> None:
    net = create_classifier(name, 2)
    optim = Optim(schedule=schedule, layer_decay=0.5, backbone_lr_scale=0.1, lr=0.8, **SCHEDULES[schedule])
    head = head_parameters(net)
    optimizer, _ = run(net, optim, head_names=head)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    depth = [id(p) for p in net.parameters()]
    assert set(rates) == set(depth)
    for key, parameter in net.named_parameters():
        if key in head:
            assert rates[id(parameter)] == pytest.approx(0.8 * EXPECTED_AFTER_10[schedule])
    stem = rates[id(next(iter(net.parameters())))]
    scales = sorted({group["initial_lr"] / 0.8 for group in optimizer.param_groups}, reverse=True)
    assert scales[0] == 1.0
    assert scales[1:] == pytest.approx([0.1 * 0.5**k for k in range(1, len(scales))])
    assert stem == pytest.approx(0.8 * scales[-1] * EXPECTED_AFTER_10[schedule])
    assert len({group["name"] for group in optimizer.param_groups}) == len(optimizer.param_groups)


def test_layer_decay_is_timms() -> None:
    from timm.optim import param_groups_layer_decay

    net = create_classifier("test_vit", 2)
    theirs = {
        id(p): (g["lr_scale"], g["weight_decay"])
        for g in param_groups_layer_decay(net, 0.05, layer_decay=0.75, no_weight_decay_list=net.no_weight_decay())
        for p in g["params"]
    }
    optimizer = build_optimizer(net, Optim(lr=1.0, layer_decay=0.75), 1)
    ours = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert ours == theirs


def test_layer_decay_reaches_a_backbone_inside_a_model() -> None:
    model = nn.ModuleDict({"backbone": create_pyramid("test_resnet", strides=[8, 16]), "head": nn.Conv2d(8, 2, 1)})
    optimizer = build_optimizer(model, Optim(lr=1.0, layer_decay=0.5), 1)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates[id(model["head"].weight)] == 1.0
    stem = next(p for p in model["backbone"].parameters())
    assert rates[id(stem)] < 0.5
    with pytest.raises(ValueError, match=r"model.optim.layer_decay: this net does not say"):
        build_optimizer(nn.Linear(2, 2), Optim(layer_decay=0.5), 1)


def test_norm_and_bias_have_no_weight_decay_and_frozen_parts_are_left_out() -> None:
    net = create_classifier("test_vit", 2)
    optimizer = build_optimizer(net, Optim(weight_decay=0.1), 1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        plain = parameter.ndim <= 1 or name.endswith(".bias") or name in net.no_weight_decay()
        assert decay[id(parameter)] == (0 if plain else 0.1), name
    freeze(net)
    optimizer = build_optimizer(net, Optim(), 1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2
    freeze(net, keep=[])
    with pytest.raises(ValueError, match="Nothing is left to train"):
        build_optimizer(net, Optim(), 1)


def test_what_a_backbone_exempts_from_decay_stays_exempt_inside_a_model() -> None:
    model = nn.ModuleDict({"backbone": create_classifier("test_vit", 0), "head": nn.Linear(64, 2)})
    optimizer = build_optimizer(model, Optim(weight_decay=0.1), 1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    exempt = model["backbone"].no_weight_decay()
    assert "pos_embed" in exempt
    for name, parameter in model["backbone"].named_parameters():
        if name in exempt:
            assert parameter.ndim > 1
            assert decay[id(parameter)] == 0, name
    assert decay[id(model["head"].weight)] == 0.1


def test_scaling_with_the_global_batch() -> None:
    assert effective_lr(Optim(lr=0.1), 1024) == 0.1
    assert effective_lr(Optim(lr=0.1, lr_scaling="linear"), 1024) == pytest.approx(0.4)
    assert effective_lr(Optim(lr=0.1, lr_scaling="sqrt", lr_base_batch=64), 1024) == pytest.approx(0.4)
    optimizer = build_optimizer(nn.Linear(2, 2), Optim(lr=0.1, lr_scaling="linear"), 1024)
    assert all(group["lr"] == pytest.approx(0.4) for group in optimizer.param_groups)
    assert describe(Optim(lr=0.1, lr_scaling="linear"), 1024) == (
        "adamw, lr 0.4 (0.1 times 1024 / 256), global batch 1024, cosine schedule, 5 % of the steps as warm-up"
    )
    assert "not scaled with the batch" in describe(Optim(), 1024)


def test_one_cycle_is_torchs() -> None:
    ours, _ = run(nn.Linear(1, 1), Optim(lr=0.3, schedule="one_cycle"), steps=0)
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.3, total_steps=TOTAL, cycle_momentum=False)
    scheduler, _ = build_scheduler(ours, Optim(lr=0.3, schedule="one_cycle"), TOTAL, PER_EPOCH)
    for step in range(TOTAL):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9)
        for optimizer, schedule in ((ours, scheduler), (theirs, reference)):
            optimizer.step()
            if step < TOTAL - 1:
                schedule.step()


@pytest.mark.parametrize("schedule", ["cosine", "poly", "step", "one_cycle", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 40])
def test_factor_is_sane_at_the_ends_of_runs_of_any_length(schedule: str, total: int) -> None:
    optim = Optim(schedule=schedule, **SCHEDULES[schedule])
    factors = [lr_factor(step, optim, total, PER_EPOCH) for step in range(total + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[0] > 0


def test_cosine_and_poly_end_at_the_floor_and_warm_up_reaches_the_top() -> None:
    for schedule in ("cosine", "poly"):
        optim = Optim(schedule=schedule, min_lr_ratio=0.25, warmup_epochs=1)
        assert lr_factor(TOTAL, optim, TOTAL, PER_EPOCH) == pytest.approx(0.25)
        assert [lr_factor(step, optim, TOTAL, PER_EPOCH) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_warm_up_longer_than_the_run_is_said() -> None:
    optimizer = build_optimizer(nn.Linear(1, 1), Optim(), 1)
    with pytest.warns(UserWarning, match="warmup_epochs is 20.*cut to 10 steps"):
        build_scheduler(optimizer, Optim(warmup_epochs=20), TOTAL, PER_EPOCH)


@pytest.mark.parametrize(
    ("settings", "total", "steps"),
    [
        ({}, 400, 20),
        ({}, 8, 0),
        ({"warmup": 0.5}, 40, 20),
        ({"warmup": 0.0}, 400, 0),
        ({"warmup_epochs": 1.5}, 40, 6),
        ({"warmup_epochs": 1}, 8, 2),  # of two epochs not the first one
        ({"warmup_epochs": 0}, 400, 0),
        ({"schedule": "one_cycle", "warmup_epochs": 0}, 400, 0),  # what checkpoints of older versions carry
    ],
)
def test_warm_up_is_in_proportion_to_the_run(settings: dict[str, Any], total: int, steps: int) -> None:
    assert warmup_steps(Optim(**settings), total, PER_EPOCH) == steps


def test_plateau_lowers_after_patience() -> None:
    optim = Optim(schedule="plateau", plateau_patience=1, plateau_factor=0.5, lr=1.0)
    optimizer, scheduler = run(nn.Linear(1, 1), optim, steps=0)
    for metric in (0.5, 0.4, 0.4):
        scheduler.step(metric)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5] * len(optimizer.param_groups)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resume_gives_the_same_rates_bit_for_bit(schedule: str) -> None:
    optim = Optim(schedule=schedule, lr=0.3, **SCHEDULES[schedule])
    net = nn.Linear(2, 2)
    optimizer, scheduler = run(net, optim, steps=7)
    again, restored = run(nn.Linear(2, 2), optim, steps=0)
    again.load_state_dict(optimizer.state_dict())
    restored.load_state_dict(scheduler.state_dict())
    for _ in range(5):
        assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]
        for one, other in ((optimizer, scheduler), (again, restored)):
            one.step()
            other.step(*([0.5] if schedule == "plateau" else []))


@pytest.mark.parametrize("name", ["adamw", "lookahead_adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_resume_with_a_changed_config_follows_the_config(schedule: str, name: str) -> None:
    old = Optim(name=name, schedule=schedule, lr=0.2, weight_decay=0.1, opt_args={"betas": [0.9, 0.95]})
    optimizer, scheduler = run(nn.Linear(2, 2), old, steps=7)
    if schedule == "plateau":
        for metric in [0.5] + [0.4] * 6:
            scheduler.step(metric)
    new = dataclasses.replace(old, lr=0.4, weight_decay=0.3, opt_args={"betas": [0.8, 0.9]})
    again, restored = run(nn.Linear(2, 2), new, steps=0)
    again.load_state_dict(optimizer.state_dict())
    restored.load_state_dict(scheduler.state_dict())
    for ours, theirs in zip(again.param_groups, optimizer.param_groups, strict=True):
        assert ours["lr"] == pytest.approx(2 * theirs["lr"])
        assert list(ours["betas"]) == [0.8, 0.9]
        assert ours["weight_decay"] == pytest.approx(3 * theirs["weight_decay"])


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb", "lion", "muon", "rmsproptf", "lookahead_adam"])
def test_optimisers_step(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = net[0].weight.clone()
    optimizer = build_optimizer(net, Optim(name=name), 1)
    net(torch.rand(8, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "adamv"}, r"model.optim.name is 'adamv'; did you mean adam"),
        ({"lr": 0.0}, r"model.optim.lr is 0.0"),
        ({"weight_decay": -1.0}, r"model.optim.weight_decay is -1.0"),
        ({"momentum": 0.8}, r"model.optim.momentum is 0.8; adamw has none"),
        ({"momentum": 1.5, "name": "sgd"}, r"model.optim.momentum is 1.5"),
        ({"opt_args": {"beta": [0.9, 0.99]}}, r"adamw has no argument 'beta'; perhaps betas"),
        ({"opt_args": {"lr": 1}}, r"set model.optim.lr instead"),
        ({"layer_decay": 1.5}, r"model.optim.layer_decay is 1.5"),
        ({"backbone_lr_scale": 0}, r"model.optim.backbone_lr_scale is 0; .*freeze"),
        ({"lr_scaling": "log"}, r"model.optim.lr_scaling is 'log'"),
        ({"lr_base_batch": 64}, r"model.optim.lr_base_batch is 64; it has no effect"),
        ({"schedule": "cosin"}, r"model.optim.schedule is 'cosin'; choose cosine"),
        ({"schedule": "one_cycle", "warmup_epochs": 2}, r"model.optim.warmup_epochs is 2; schedule: one_cycle ignores"),
        ({"warmup": 1.0}, r"model.optim.warmup is 1.0; it is a fraction"),
        ({"warmup": 0.1, "warmup_epochs": 1}, r"model.optim.warmup is 0.1; warmup_epochs is 1, too"),
        ({"schedule": "step"}, r"model.optim.step_epochs is \[\]"),
        ({"schedule": "step", "step_epochs": [3, 2]}, r"model.optim.step_epochs is \[3, 2\]; it must be a rising list"),
        ({"step_epochs": [3]}, r"model.optim.step_epochs is \[3\]; schedule: cosine ignores"),
        ({"gamma": 0.5}, r"model.optim.gamma is 0.5; schedule: cosine ignores"),
        ({"schedule": "constant", "min_lr_ratio": 0.1}, r"model.optim.min_lr_ratio is 0.1; schedule: constant ignores"),
        ({"min_lr_ratio": 2}, r"model.optim.min_lr_ratio is 2"),
        ({"plateau_patience": 3}, r"model.optim.plateau_patience is 3; schedule: cosine ignores"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optim(**settings)


def test_backbone_scale_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.optim.backbone_lr_scale is 0.1"):
        build_optimizer(nn.Linear(2, 2), Optim(backbone_lr_scale=0.1), 1)


def test_what_the_optimiser_itself_refuses_is_said_of_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"model.optim.opt_args: adamw refuses \{'fused': True, 'foreach': True\}"):
        build_optimizer(nn.Linear(2, 2), Optim(opt_args={"fused": True, "foreach": True}), 1)


@pytest.mark.gpu
def test_fused_on_the_gpu_can_still_be_clipped() -> None:
    net = nn.Linear(4, 4).cuda()
    assert not build_optimizer(net, Optim(opt_args={"foreach": True}), 1).defaults["fused"]
    optimizer = build_optimizer(net, Optim(), 1)
    assert optimizer.defaults["fused"]
    assert not optimizer._step_supports_amp_scaling
    scaler = torch.amp.GradScaler("cuda", init_scale=64.0)
    with torch.autocast("cuda", torch.float16):
        loss = net(torch.rand(8, 4, device="cuda")).square().sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    assert torch.isfinite(norm)
    before = net.weight.clone()
    scaler.step(optimizer)
    assert not torch.equal(net.weight, before)


def test_counts_of_steps_follow_the_parameters_of_a_fused_optimiser():
    """A run that began unfused, on a CPU, goes on fused: torch leaves Adam's `step` where it was."""
    net = nn.Linear(2, 2)
    optimizer = build_optimizer(net, Optim(), 1)
    net(torch.rand(4, 2)).sum().backward()
    optimizer.step()
    again = build_optimizer(nn.Linear(2, 2, device="meta"), Optim(opt_args={"fused": True}), 1)
    again.load_state_dict(optimizer.state_dict())
    states = list(again.state.values())
    assert states
    assert {state["step"].device.type for state in states} == {"meta"}


def test_muon_computes_in_float32_on_a_cpu():
    """Bfloat16 is emulated on most CPUs, and seven times as slow; the result is nearer to orthogonal, too."""
    from timm.optim import muon

    found = muon.zeropower_via_newtonschulz(
        torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), 5, [(3.4445, -4.7750, 2.0315)] * 5
    )
    assert found.dtype == torch.float32
    assert (torch.linalg.svdvals(found) - 1).abs().max() < 0.4
