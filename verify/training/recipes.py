"""How the presets of `theory.presets` were trained: optimizer, schedule, batch ramp, and what is added to the loss.

Sources as there: [P] read in the paper, [C] in the authors' code, [S] in a digest, [M] from memory. What a `Run` cannot
express is in `note`.
"""

import dataclasses
from dataclasses import dataclass

from theory.architecture import Architecture
from theory.presets import preset
from verify.training.optimizer import Optimizer
from verify.training.run import Run


@dataclass(frozen=True)
class Recipe:
    """Training of one preset at its published size.

    optimizer: with warm-up and hold in steps of the published run, which took `steps`. batch_ramp: pairs (step of the
    published run, share of the full batch from there on).
    """

    optimizer: Optimizer
    steps: int
    batch_ramp: tuple[tuple[int, float], ...] = ()
    dropout: float = 0.0
    z_loss: float = 0.0
    source: str = ""
    note: str = ""


def recipe(name: str) -> Recipe:
    """How that preset was trained. Raises ValueError with the choices for an unknown preset."""
    preset(name)
    family = next(prefix for prefix in sorted(_FAMILIES, key=len, reverse=True) if name.startswith(prefix))
    made, rate = _FAMILIES[family], _RATES.get(name)
    return made if rate is None else dataclasses.replace(made, optimizer=_with(made.optimizer, learning_rate=rate))


def trained_as(name: str, run: Run) -> Run:
    """The run with that preset's training, at the run's own size: its model, corpus, full batch, steps and seed stay.

    Warm-up, hold and ramp keep their share of the steps, and a batch of the ramp its share of the full one, rounded to
    whole numbers of at least 1. The rate is multiplied by published over own width, as the best rate of Adam goes with
    the width under a standard parametrisation (Yang et al., arXiv 2203.03466, figure 1); Adafactor's, which is relative
    to the weights, and rates of muP stay. Raises ValueError for an unknown preset.
    """
    published, arch = recipe(name), preset(name).arch
    share = run.steps / published.steps
    optimizer = published.optimizer
    relative = optimizer.method == "adafactor" or optimizer.parametrization != "standard"
    width = 1.0 if relative else arch.d_model / run.arch.d_model
    scaled = _with(
        optimizer,
        learning_rate=optimizer.learning_rate * width,
        final_rate=None if optimizer.final_rate is None else optimizer.final_rate * width,
        warmup_steps=_steps(optimizer.warmup_steps, share),
        hold_steps=_steps(optimizer.hold_steps, share),
    )
    ramp = {_steps(step, share): max(round(part * run.batch_size), 1) for step, part in published.batch_ramp}
    return dataclasses.replace(
        run,
        optimizer=scaled,
        batch_ramp=tuple((step, size) for step, size in ramp.items() if step < run.steps),
        dropout=published.dropout,
        z_loss=published.z_loss,
    )


def small(name: str) -> Architecture:
    """That preset at 4 layers, d_model 64, 2 heads, 64 tokens of 256 words; what is a rule in its sizes stays one."""
    arch = preset(name).arch
    d_model = 64
    scaled = arch.logit_scale * arch.d_model**0.5
    return dataclasses.replace(
        arch,
        num_layers=4,
        d_model=d_model,
        num_heads=2,
        num_kv_heads=None if arch.num_kv_heads is None else 1,
        d_ff=None if arch.d_ff is None else round(arch.d_ff / arch.d_model * d_model),
        vocab_size=256,
        seq_len=64,
        logit_scale=arch.logit_scale if arch.logit_scale == 1 else scaled * d_model**-0.5,
    )


def _steps(published: int, share: float) -> int:
    return max(round(published * share), 1) if published else 0


def _with(optimizer: Optimizer, **fields: object) -> Optimizer:
    return dataclasses.replace(optimizer, **fields)  # type: ignore[arg-type]


_ADAM = Optimizer(warmup_steps=2000, final_share=0.1, beta1=0.9, beta2=0.95, weight_decay=0.1, clip=1.0)
_GPT3_NOTE = "the same ramp for every size; GPT-3's grew in tokens, from 32,000 to the full batch over 4 to 12 billion"

_FAMILIES = {
    "gpt2": Recipe(
        _with(_ADAM, learning_rate=6e-4), 600_000, dropout=0.1,
        source="Radford et al. 2019 say nothing of it; rate, decay and steps of its public reproductions [M]",
    ),
    "gpt3": Recipe(
        _with(_ADAM, warmup_steps=117), 93_750, ((0, 0.01), (600, 0.25), (1250, 0.5), (2500, 1.0)),
        source="Brown et al., arXiv 2005.14165, appendix B [M]: warm-up over 375 million of 300 billion tokens",
        note=_GPT3_NOTE,
    ),
    "palm": Recipe(
        Optimizer(
            method="adafactor", learning_rate=1e-2, schedule="inverse_sqrt", warmup_steps=0, hold_steps=10_000,
            weight_decay=1.0, decay="rate_squared",
        ),
        255_000, ((0, 0.25), (50_000, 0.5), (115_000, 1.0)), z_loss=1e-4,
        source="Chowdhery et al., arXiv 2204.02311, section 5 [P]",
    ),
    "llama": Recipe(
        _ADAM, 250_000, source="Touvron et al., arXiv 2302.13971 [P]; rates by size [M]",
    ),
    "chinchilla": Recipe(
        _with(_ADAM, learning_rate=1e-4), 800_000, ((0, 0.5), (400_000, 1.0)),
        source="Hoffmann et al., arXiv 2203.15556: AdamW, rate, cosine, batch doubled midway [P]; warm-up, steps [M]",
    ),
    "galactica": Recipe(
        _with(_ADAM, learning_rate=7e-6, schedule="linear", warmup_steps=550), 225_000, dropout=0.1,
        source="Taylor et al., arXiv 2211.09085: optimizer, linear to a tenth, dropout [P]; rate, warm-up, steps [M]",
    ),
    "opt": Recipe(
        _with(_ADAM, learning_rate=1.2e-4, schedule="linear"), 143_000, dropout=0.1,
        source="Zhang et al., arXiv 2205.01068: optimizer, linear [P]; rate, dropout, steps [M]",
        note="clipped at 1 throughout, at 0.3 from some point on there",
    ),
    "bloom": Recipe(
        _with(_ADAM, learning_rate=6e-5, warmup_steps=183), 95_000,
        ((0, 192 / 2048), (2_300, 0.25), (4_700, 0.5), (8_000, 1.0)),
        source="BLOOM, arXiv 2211.05100 [C]: rate, cosine to a tenth, 192 to 2048 sequences over 9.8e6; steps [M]",
    ),
    "glm": Recipe(
        _with(_ADAM, learning_rate=8e-5, warmup_steps=250), 49_300, ((0, 192 / 4224), (600, 0.5), (1_200, 1.0)),
        dropout=0.1,
        source="GLM-130B, arXiv 2210.02414: optimizer and rate [P]; warm-up, ramp, dropout, steps [M]",
    ),
    "gpt-neox": Recipe(
        _with(_ADAM, learning_rate=0.97e-4, weight_decay=0.01, warmup_steps=1500), 150_000,
        source="GPT-NeoX-20B, arXiv 2204.06745 [C]; warm-up of a hundredth [M]",
    ),
    "olmo2": Recipe(
        _with(_ADAM, learning_rate=3e-4, decay_embeddings=False), 928_000, z_loss=1e-5,
        source="OLMo 2, arXiv 2501.00656 [P][C]; z-loss coefficient and steps [M]",
    ),
    "snm": Recipe(
        _with(_ADAM, learning_rate=5e-4), 50_000,
        source="Takase et al., arXiv 2312.16903: clip [M], rates of 1.7B and 13B [S], steps, warm-up and betas [M]",
    ),
    "ssp": Recipe(
        Optimizer(
            learning_rate=1e-2, warmup_steps=5_000, final_rate=1e-5, weight_decay=1e-4, decay="independent",
        ),
        100_000, z_loss=1e-4,
        source="Wortsman et al., arXiv 2309.14322, section 2.1 [P]; of its rates, 3e-4 to 3e-1, the best of many sizes",
    ),
    "mis": Recipe(
        _with(_ADAM, learning_rate=3e-4), 100_000,
        source="Rybakov et al., arXiv 2410.16682: clip, and the rate of its perplexity table [S]; the rest [M]",
    ),
}  # fmt: skip

_RATES = {
    "gpt3-125m": 6e-4, "gpt3-350m": 3e-4, "gpt3-760m": 2.5e-4, "gpt3-1.3b": 2e-4, "gpt3-2.7b": 1.6e-4,
    "gpt3-6.7b": 1.2e-4, "gpt3-13b": 1e-4, "gpt3-175b": 6e-5,
    "llama-7b": 3e-4, "llama-13b": 3e-4, "llama-33b": 1.5e-4, "llama-65b": 1.5e-4,
    "snm-13b": 3e-4, "snm-13b-scaled": 3e-4,
}  # fmt: skip
