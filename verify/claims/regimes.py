"""Where does the difference between Vanilla and Scaled Embed end? The stand-in with one thing changed at a time."""

from typing import Any

from verify.claims.embedding_scale import EMBEDDING, RATE, SEED, VANILLA, stand_in
from verify.claims.evidence import Cell, cells
from verify.claims.scale import Scale
from verify.training.run import changed

AS_IT_IS = "as it is"
BY_HEART, NO_VANISHING, LONGER = "full batch", "full batch, epsilon 1e-4", "full batch, 3 x the steps"
FURTHER = "full batch, 3 x the steps, further seeds"
METHODS = (VANILLA, "scaled")


_AT_TINY = (AS_IT_IS, "rate / 2", BY_HEART, "length x 4", "words", "bfloat16")
"""one setting of each kind: of another number, data, shape, alphabet and program"""


def settings(scale: Scale) -> dict[str, dict[str, Any]]:
    """By name, the fields in which each differs from `stand_in`; as many tokens a step, but where the batch differs."""
    found = _settings(scale)
    return {name: found[name] for name in _AT_TINY} if scale.name == "tiny" else found


def _settings(scale: Scale) -> dict[str, dict[str, Any]]:
    run = stand_in(scale)
    arch, rate, batch, steps = run.arch, run.optimizer.learning_rate, run.batch_size, run.steps
    return {
        AS_IT_IS: {},
        "rate / 4": {RATE: rate / 4},
        "rate / 2": {RATE: rate / 2},
        "rate x 2": {RATE: rate * 2},
        "cosine schedule": {"optimizer.schedule": "cosine"},
        "1 step of warm-up": {"optimizer.warmup_steps": 1},
        "no clipping": {"optimizer.clip": 0.0},
        "beta2 0.99": {"optimizer.beta2": 0.99},
        "beta2 0.999": {"optimizer.beta2": 0.999},
        "no decay": {"optimizer.weight_decay": 0.0},
        "decay x 3": {"optimizer.weight_decay": 3 * run.optimizer.weight_decay},
        "batch / 4": {"batch_size": batch // 4},
        "batch x 4, half the steps": {"batch_size": batch * 4, "steps": steps // 2},
        BY_HEART: {"windows": batch, "steps": steps // 2},
        "depth / 4": {"arch.num_layers": max(arch.num_layers // 4, 1)},
        "depth x 2": {"arch.num_layers": arch.num_layers * 2},
        "width x 2, rate / 2": {
            "arch.d_model": arch.d_model * 2, "arch.num_heads": arch.num_heads * 2, RATE: rate / 2,
        },
        "length x 4": {"arch.seq_len": arch.seq_len * 4, "batch_size": max(batch // 4, 1)},
        "tied tables": {"arch.tied": True},
        "frozen table": {"optimizer.embedding_rate": 0.0},
        "QK norm": {"arch.attention": "qk_norm"},
        "words": {"corpus": "words", "arch.vocab_size": 1024},
        "bfloat16": {"precision": "bfloat16"},
    }  # fmt: skip


def regime_runs(scale: Scale) -> tuple[Cell, ...]:
    """Vanilla and Scaled Embed in every setting, a quarter of the seeds of the main comparison."""
    return _cells(scale, settings(scale), range(_mapped(scale)))


MORE_LOSS_SPIKES = (
    ((BY_HEART, "scaled"), (BY_HEART, "vanilla")),
    ((BY_HEART, "scaled"), (NO_VANISHING, "scaled")),
    ((LONGER, "vanilla"), (BY_HEART, "vanilla")),
    ((LONGER, "scaled"), (LONGER, "vanilla")),
)
"""Setting and method that should have more spikes of the loss than the second: as in the map's seeds; if Adam's steps
on vanished gradients are why; if Vanilla comes to it later; if Scaled Embed still has more then. The first two fixed
before `loss_spike_runs`, the others one by one after what had been seen, each before its own runs."""

KNOWN_BY_HEART, SAME_WITHIN = 0.05, 1.5
"""A step whose loss in nats is below the first belongs to a run that knows its windows by heart. The last hypothesis,
fixed after all other runs and before those of FURTHER: Scaled Embed has more spikes of the loss only because it spends
more such steps, and the spikes for each of them are Vanilla's within this factor."""


def loss_spike_runs(scale: Scale) -> tuple[Cell, ...]:
    """The settings of MORE_LOSS_SPIKES and FURTHER, each on as many seeds as the main comparison, none of the map."""
    full_batch, seeds = settings(scale)[BY_HEART], range(_mapped(scale), _mapped(scale) + scale.spike_seeds)
    longer = full_batch | {"steps": 3 * full_batch["steps"]}
    chosen = {BY_HEART: full_batch, NO_VANISHING: full_batch | {"optimizer.epsilon": 1e-4}, LONGER: longer}
    further = range(seeds.stop, seeds.stop + scale.spike_seeds)
    return _cells(scale, chosen, seeds) + _cells(scale, {FURTHER: longer}, further)


def _mapped(scale: Scale) -> int:
    """Seeds of each setting in the map."""
    return max(scale.spike_seeds // 4, 2)


def _cells(scale: Scale, chosen: dict[str, dict[str, Any]], seeds: range) -> tuple[Cell, ...]:
    return tuple(
        cell
        for name, fields in chosen.items()
        for cell in cells(changed(stand_in(scale), fields), {EMBEDDING: METHODS, SEED: seeds}, setting=name)
    )
