"""A resolved plan for people: its layers, what trains of each part, and how deep gradients go, as text and as HTML."""

from typing import TYPE_CHECKING

from records.html import rows_html
from tuning.layers import format_layers

if TYPE_CHECKING:
    from tuning.plan import Resolved


def plan_text(resolved: "Resolved") -> str:
    """Some lines for the terminal."""
    lines = [f"{word:<11}{said}" for word, said in _words(resolved).items()]
    for part, (count, trained) in _parts(resolved).items():
        lines.append(f"{part:<13}{trained:>14,} of {count:>14,} train ({trained / max(count, 1):.1%})")
    if resolved.lora_count:
        lines.append(f"{'LoRA factors':<13}{resolved.lora_count:>14,}")
    trained, total = resolved.trained, resolved.total
    lines.append(f"{'in all':<13}{trained:>14,} of {total:>14,} train ({trained / total:.2%})")
    return "\n".join([*lines, _depth(resolved), *(f"note: {note}" for note in resolved.notes)])


def plan_html(resolved: "Resolved") -> str:
    """The same as a table."""
    rows = [
        (part, f"{trained:,}", f"{count:,}", f"{trained / max(count, 1):.1%}")
        for part, (count, trained) in _parts(resolved).items()
    ]
    if resolved.lora_count:
        rows.append(("LoRA factors", f"{resolved.lora_count:,}", "", ""))
    trained, total = resolved.trained, resolved.total
    rows.append(("in all", f"{trained:,}", f"{total:,}", f"{trained / total:.2%}"))
    return rows_html(
        ("part", "train", "of", "share"),
        rows,
        title="; ".join(f"{word} {said}" for word, said in _words(resolved).items()),
        caption=". ".join((_depth(resolved), *resolved.notes)),
        right=(False, True, True, True),
    )


def _words(resolved: "Resolved") -> dict[str, str]:
    plan, layers = resolved.plan, format_layers(resolved.layers, resolved.n_layers)
    lora, lisa = plan.lora, plan.lisa
    n_maps = len(resolved.lora_modules)
    detail = {
        "full": "",
        "lora": f", rank {lora.rank}, alpha {lora.alpha}, dropout {lora.dropout} on {n_maps} linear maps",
        "lisa": f", {lisa.active} blocks at a time, drawn every {lisa.every} steps",
    }[plan.method]
    return {
        "plan": plan.label,
        "method": plan.method + detail,
        "layers": f"{layers} ({len(resolved.layers)} of {resolved.n_layers})",
    }


def _parts(resolved: "Resolved") -> dict[str, tuple[int, int]]:
    """Of each part of the model how many numbers it has, and how many of them train."""
    merged: dict[str, tuple[int, int]] = {}
    for group in resolved.groups:
        part = "blocks" if group.name.startswith("block ") else group.name
        part = "vision tower" if group.name.startswith("vision") else part
        count, trained = merged.get(part, (0, 0))
        merged[part] = count + group.count, trained + group.trained
    return merged


def _depth(resolved: "Resolved") -> str:
    where = f"at block {resolved.first_block}"
    if resolved.first_block == resolved.n_layers:
        where = "above the blocks"
    if resolved.below_blocks:
        where = "below the blocks"
    if resolved.first_vision is not None:
        where = f"at block {resolved.first_vision} of the vision tower"
    return f"gradients stop {where}"
