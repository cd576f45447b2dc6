"""A plan as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from egrpo.planning.memory import ROWS, Phase
from egrpo.planning.planner import GB, Plan, largest

WIDTH = 11  # of a column
DECODING = {
    "eager": "by eager loops",
    "captured": "by CUDA graphs",
    "compiled": "by CUDA graphs, the operations of a layer fused",
}


def report(plan: Plan) -> str:
    """Memory, work, time, checkpoints and assumptions, in this order."""
    parts = [head, memory_table, work_lines, time_table, checkpoint_lines, assumptions]
    return "\n\n".join(part(plan) for part in parts)


def head(plan: Plan) -> str:
    """Who, on what, and how it is spread."""
    arch = plan.parts.arch
    return "\n".join(
        [
            f"{plan.devices} x {plan.device.name}: {plan.parts.sharding.says}",
            f"policy: {arch.parameters / 1e9:.3f} billion parameters, {arch.trained / 1e9:.3f} billion trained, "
            f"{_dtype(arch.dtype)}; gradient checkpointing {'on' if arch.checkpointing else 'off'}",
            *(
                f"reward {m.name}: {m.parameters / 1e9:.3f} billion parameters, {m.source}"
                + (", on the host between uses" if m.offload else "")
                for m in plan.parts.rewards
            ),
        ]
    )


def memory_table(plan: Plan) -> str:
    """GB by part and phase, and the peak."""
    columns = plan.at_limits
    lines = ["GB (10^9 bytes) of one device in each phase, all prompts and plans at their limits"]
    lines.append(_line("", [phase.name for phase in columns]))
    for row in ROWS:
        values = [phase.rows.get(row, 0.0) / GB for phase in columns]
        if any(values):
            lines.append(_line(row, [_number(value) for value in values]))
    lines.append(_line("total", [_number(phase.total / GB) for phase in columns]))
    lines.append(_line("at mean lengths", [_number(phase.total / GB) for phase in plan.at_mean]))
    lines.append(
        f"peak: {_peak(plan.at_limits)}, at mean lengths {_peak(plan.at_mean)}; "
        f"a device has {plan.device.memory_gb:g} GB"
    )
    return "\n".join(lines)


def work_lines(plan: Plan) -> str:
    """Images and tokens a step, over all devices."""
    work, share = plan.parts.work, plan.devices
    images = work.rows * share
    lines = [f"a step: {images:,} images ({images // work.group_size:,} prompts x {work.group_size})"]
    if work.cot:
        lines.append(
            f"plan tokens: {round(images * plan.mean.plan_mean):,} at {plan.mean.plan_mean:g} each (assumed), "
            f"{images * plan.limits.plan:,} at the limit of {plan.limits.plan:,}"
        )
    lines.append(f"image tokens: {images * work.image_tokens:,} ({work.image_tokens} each)")
    return "\n".join(lines)


def time_table(plan: Plan) -> str:
    """Operations over all devices and seconds, at mean lengths, and the whole run."""
    names = [cost.name for cost in plan.costs]
    tera = [cost.flops * plan.devices / 1e12 for cost in plan.costs]
    seconds = [cost.seconds for cost in plan.costs]
    exchange = [cost.exchange for cost in plan.costs]
    hours = plan.steps * plan.step_seconds / 3600
    return "\n".join(
        [
            "operations of all devices (10^12) and seconds of each phase, at mean lengths",
            _line("", [*(name[: WIDTH - 1] for name in names), "a step"]),
            _line("TFLOP", [_number(value) for value in [*tera, sum(tera)]]),
            _line("seconds", [_number(value) for value in [*seconds, sum(seconds)]]),
            *([_line("exchange", [_number(value) for value in [*exchange, sum(exchange)]])] if any(exchange) else []),
            f"tokens are drawn {DECODING[plan.parts.decoding]}",
            f"{plan.steps:,} rollouts: {hours:,.1f} hours on {plan.devices} x {plan.device.name}, validation left out",
        ]
    )


def checkpoint_lines(plan: Plan) -> str:
    """Sizes of what is kept, and how long it takes to write."""
    found = plan.checkpoint
    best = f"; the best state takes {_number(found.best / GB)} more" if found.best else ""
    how = "for which training waits"
    if found.staged:
        staged = _number(found.staged / GB)
        how = f"while training continues after {found.waiting:,.1f} s, from {staged} GB of a process's host memory"
    return (
        f"a checkpoint: {_number(found.state / GB)} GB (trained weights {_number(found.weights / GB)}, optimizer "
        f"{_number(found.optimizer / GB)}){best}; about {found.seconds:,.0f} s to write, {how}; the one that it "
        "replaces stays until it is whole"
    )


def assumptions(plan: Plan) -> str:
    """All that was assumed, with its keys."""
    a, work = plan.assumed, plan.parts.work
    cot = (
        f"  plans: {a.plan_tokens:g} tokens in the mean (assumptions.plan_tokens), the longest of a batch "
        f"{a.longest_plan:g} times that (.longest_plan), which all others are padded to"
    )
    offloaded = plan.parts.sharding.offload_optimizer
    host = f", {a.host_step_gb_s:g} GB/s by an optimizer's step there (.host_step_gb_s)" if offloaded else ""
    lines = [
        "assumed:",
        *([cot] if work.cot else []),
        f"  prompts: {plan.mean.prompt} tokens with the reasoning template (.prompt_tokens), {a.image_prompt_tokens} "
        f"before an image (.image_prompt_tokens); at their limits {plan.limits.prompt} and {plan.limits.image_context}",
        f"  speed: {a.compute_efficiency:.0%} of the peak over whole sequences (.compute_efficiency), "
        f"{a.memory_efficiency:.0%} of the memory bandwidth (.memory_efficiency); a layer and drawn token take "
        f"{a.compiled_layer_ms:g} ms more if compiled (.compiled_layer_ms), {a.captured_layer_ms:g} if captured "
        f"(.captured_layer_ms), and an eager layer and pass {a.launch_ms:g} ms at least (.launch_ms)",
        f"  exchange: {a.link_efficiency:.0%} of the link between devices (.link_efficiency), {a.host_link_gb_s:g} "
        f"GB/s to the host (.host_link_gb_s){host}; {a.disk_gb_s:g} GB/s to the disk (.disk_gb_s)",
        "  rewards: operations, activations and seconds as published_rewards has them",
        "  not counted: the device's context, fragmentation, workspaces and communication buffers, some 1 to 4 GB; "
        "a GB is 10^9 bytes, and a device has some 6 % more than its datasheet says in those",
    ]
    if not plan.parts.sharding.whole:
        how = "from a whole copy (rollout.gather=full)"
        if not plan.parts.keeps_copy:
            how = "layer by layer at every token (rollout.gather=shard), which is slow"
        lines.append(f"  divided weights are read for sampling {how}")
    return "\n".join(lines)


def refusal(plan: Plan, ways: Sequence[str]) -> str:
    """Why the plan is refused, and what would help, in one sentence."""
    peak = plan.peak
    parts = sorted(((value, name) for name, value in peak.rows.items() if value > 0), reverse=True)[:4]
    most = ", ".join(f"{name} {value / GB:.1f}" for value, name in parts)
    other = largest(plan.at_mean).total
    mean = ""
    if plan.refuse_at == "limits" and other <= plan.device.memory_gb * GB:
        mean = f", though {other / GB:.1f} GB at mean lengths (refuse_at=mean accepts that)"
    if ways:
        help_ = "it would fit with " + ", or with ".join(ways)
    else:
        help_ = "none of ways_out, nor all together, makes it fit: take more devices or larger ones"
    return (
        f"the plan does not fit: the phase {peak.name!r} needs {peak.total / GB:.1f} GB on each device, and the "
        f"{plan.device.name} has {plan.device.memory_gb:g} (most of it {most}){mean}; {help_}"
    )


def _peak(phases: Iterable[Phase]) -> str:
    phase = largest(list(phases))
    return f"{phase.total / GB:.1f} GB ({phase.name})"


def _line(name: str, values: Iterable[str]) -> str:
    return f"{name:<17}" + "".join(f"{value:>{WIDTH}}" for value in values)


def _number(value: float) -> str:
    if value == 0:
        return "-"
    return f"{value:,.2f}" if value >= 0.005 else f"{value:.1e}"


def _dtype(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
