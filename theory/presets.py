"""Published recipes as Architectures at their published size: a block, an initialisation and an embedding that were
trained together.

`dataclasses.replace(preset(name).arch, num_layers=..., d_model=..., num_heads=...)` is a scaled-down version: rules in
d and N follow, and so must `d_ff`, `num_kv_heads` and `logit_scale` where a recipe states them.

Sources: [P] read in the paper, [C] in the authors' code or configuration, [S] in a digest, [M] from memory. What an
Architecture cannot express is in `note`, not left out in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from theory.architecture import Architecture
from theory.schemes import lookup


@dataclass(frozen=True)
class Preset:
    """One recipe at one size.

    parameters: the published count, of the blocks alone where `embeddings` is False; None: none was found. source:
    where sizes and initialisation come from, with tags. note: what differs from what was trained.
    """

    name: str
    arch: Architecture
    parameters: float | None
    source: str
    note: str = ""
    embeddings: bool = True


def preset(name: str) -> Preset:
    """The recipe of that name, of a family's name ("llama") its first size.

    Raises ValueError with the choices for an unknown one.
    """
    sizes = [recipe for recipe in PRESETS.values() if recipe.name.rpartition("-")[0] == name]
    if name not in PRESETS and sizes:
        return sizes[0]
    return lookup("preset", name, PRESETS, Preset)


def _family(shared: Mapping[str, Any], sizes: Mapping[str, tuple[Any, ...]], **about: Any) -> list[Preset]:
    """Presets that share all but (num_layers, d_model, num_heads, published parameters, further fields or none)."""
    made = []
    for name, (layers, width, heads, parameters, *own) in sizes.items():
        fields = {"num_layers": layers, "d_model": width, "num_heads": heads, **shared, **(own[0] if own else {})}
        made.append(Preset(name, Architecture(**fields), parameters, **about))
    return made


_GPT: dict[str, Any] = {
    "activation": "gelu_tanh", "positions": "learned", "initialization": "gpt2", "embedding": "vanilla", "bias": True,
    "tied": True, "vocab_size": 50257,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "norm": "rms_norm", "norm_epsilon": 1e-6, "activation": "swiglu", "positions": "rope", "initialization": "llama",
    "embedding": "vanilla",
}  # fmt: skip
_PALM: dict[str, Any] = {
    "block": "parallel", "activation": "swiglu", "positions": "rope", "initialization": "palm", "embedding": "vanilla",
    "num_kv_heads": 1, "tied": True, "vocab_size": 256000, "seq_len": 2048,
}  # fmt: skip
_SNM: dict[str, Any] = _GPT | {"initialization": "megatron", "activation": "gelu", "seq_len": 2048}
_SNM_ABOUT = {
    "source": "Takase et al., arXiv 2312.16903; initialisation [P], d_ff 4 d [S], widths and heads of 350M and 13B, "
    "heads of 1.7B, vocabulary, tying, learned positions and biases [M]",
    "note": "Megatron's defaults for what the sources seen leave open",
}
_SSP: dict[str, Any] = {
    "activation": "gelu_tanh", "positions": "rope", "attention": "qk_norm", "initialization": "ssp",
    "embedding": "vanilla", "vocab_size": 32101, "seq_len": 512,
}  # fmt: skip


def _snm(embedding: str, suffix: str) -> list[Preset]:
    sizes = {
        "snm-350m": (24, 1024, 16, 350e6),
        "snm-1.7b": (24, 2304, 24, 1.7e9),
        "snm-13b": (40, 5120, 40, 13e9),
    }
    named = {name + suffix: size for name, size in sizes.items()}
    return _family(_SNM | {"embedding": embedding}, named, **_SNM_ABOUT)


_PRESETS = [
    *_family(
        _GPT | {"seq_len": 1024},
        {
            "gpt2-small": (12, 768, 12, 124439808),
            "gpt2-medium": (24, 1024, 16, 354823168),
            "gpt2-large": (36, 1280, 20, 774030080),
            "gpt2-xl": (48, 1600, 25, 1557611200),
        },
        source="Radford et al. 2019; sizes and counts of the released models [M], initialisation [P], positions [C]",
    ),
    *_family(
        _GPT | {"seq_len": 2048},
        {
            "gpt3-125m": (12, 768, 12, 125e6),
            "gpt3-350m": (24, 1024, 16, 350e6),
            "gpt3-760m": (24, 1536, 16, 760e6),
            "gpt3-1.3b": (24, 2048, 16, 1.3e9),
            "gpt3-2.7b": (32, 2560, 32, 2.7e9),
            "gpt3-6.7b": (32, 4096, 32, 6.7e9),
            "gpt3-13b": (40, 5120, 40, 13e9),
            "gpt3-175b": (96, 12288, 96, 175e9),
        },
        source="Brown et al., arXiv 2005.14165, table 2.1 [M]; initialisation as GPT-2 [M]",
        note="every layer dense, where every second one was locally banded sparse; the table's 1.3B has 24 heads of "
        "128 at a width of 2048 (here 16 of 128), its 13B a width of 5140 (here 5120)",
    ),
    *_family(
        _PALM,
        {
            "palm-8b": (32, 4096, 16, 8.63e9, {"logit_scale": 4096**-0.5}),
            "palm-62b": (64, 8192, 32, 62.5e9, {"logit_scale": 8192**-0.5}),
            "palm-540b": (118, 18432, 48, 540.35e9, {"logit_scale": 18432**-0.5}),
        },
        source="Chowdhery et al., arXiv 2204.02311: recipe [P], sizes [M]",
        note="540B: 48 heads are 256 wide there and 384 here, as heads fill the width: 5 % more parameters",
    ),
    *_family(
        _LLAMA | {"vocab_size": 32000, "seq_len": 2048},
        {
            "llama-7b": (32, 4096, 32, 6738415616, {"d_ff": 11008}),
            "llama-13b": (40, 5120, 40, 13015864320, {"d_ff": 13824}),
            "llama-33b": (60, 6656, 52, 32528943616, {"d_ff": 17920}),
            "llama-65b": (80, 8192, 64, 65285660672, {"d_ff": 22016}),
        },
        source="Touvron et al., arXiv 2302.13971: recipe [P]; initialisation, d_ff and counts of the released ones [M]",
    ),
    *_family(
        {
            "norm": "rms_norm", "activation": "gelu_tanh", "positions": "rope", "initialization": "lecun",
            "embedding": "vanilla", "vocab_size": 32000, "seq_len": 2048,
        },
        {"chinchilla-70b": (80, 8192, 64, 70e9)},
        source="Hoffmann et al., arXiv 2203.15556: sizes [M]; initialisation unknown, Haiku's 1 / sqrt(fan_in) [M]",
        note="relative positions with a projection of their own there (80 d^2, 5.4e9 parameters), RoPE here",
    ),
    *_family(
        _GPT | {"bias": False, "vocab_size": 50000, "seq_len": 2048},
        {"galactica-120b": (96, 10240, 80, 120e9)},
        source="Taylor et al., arXiv 2211.09085: recipe [P], sizes [M]; initialisation unknown, GPT-2's here [M]",
    ),
    *_family(
        _GPT | {"activation": "relu", "initialization": "opt", "vocab_size": 50272, "seq_len": 2048},
        {"opt-175b": (96, 12288, 96, 175e9)},
        source="Zhang et al., arXiv 2205.01068: recipe [P], sizes [M]",
    ),
    *_family(
        _GPT | {"positions": "alibi", "initialization": "bloom", "embedding": "layer_norm", "vocab_size": 250880,
                "seq_len": 2048},
        {"bloom-176b": (70, 14336, 112, 176247271424)},
        source="BLOOM, arXiv 2211.05100: recipe and sizes [C], count of the released model [M]",
    ),
    *_family(
        _GPT | {"block": "deepnorm_glm", "activation": "geglu", "positions": "rope", "initialization": "glm",
                "embedding": "detach", "vocab_size": 150528, "seq_len": 2048},
        {"glm-130b": (70, 12288, 96, 130e9, {"d_ff": 32768})},
        source="GLM-130B, arXiv 2210.02414: recipe [P]; sizes, tying and biases [M]",
        note="causal attention throughout, where GLM sees its context in both directions",
    ),
    *_family(
        _GPT | {"block": "parallel", "activation": "gelu", "positions": "rope", "initialization": "wang",
                "tied": False, "vocab_size": 50432, "seq_len": 2048},
        {"gpt-neox-20b": (44, 6144, 64, 20554567680)},
        source="GPT-NeoX-20B, arXiv 2204.06745: sizes and initialisation [C], vocabulary padded to 50432 and count [M]",
        note="RoPE turns a quarter of each head's coordinates there, all here; each branch has its own norm there, "
        "equal ones at the start",
    ),
    *_family(
        _LLAMA | {"block": "output_norm", "attention": "qk_norm", "initialization": "olmo2", "vocab_size": 100352,
                  "seq_len": 4096},
        {
            "olmo2-7b": (32, 4096, 32, 7298617344, {"d_ff": 11008}),
            "olmo2-13b": (40, 5120, 40, 13716198400, {"d_ff": 13824}),
        },
        source="OLMo 2, arXiv 2501.00656: 13B [C]; sizes of 7B and counts [M]",
        note="QK norm over all heads' coordinates at once there, over each head's here; RoPE's base 500,000 there, "
        "10,000 here",
    ),
    *_snm("vanilla", ""),
    *_snm("scaled", "-scaled"),
    *_family(
        _SSP,
        {
            "ssp-2.4m": (3, 256, 4, 2.4e6),
            "ssp-9.4m": (3, 512, 8, 9.4e6),
            "ssp-19m": (6, 512, 8, 19e6),
            "ssp-42m": (6, 768, 12, 42e6),
            "ssp-85m": (12, 768, 12, 85e6),
            "ssp-300m": (24, 1024, 16, 3e8),
            "ssp-1.2b": (24, 2048, 32, 1.2e9),
            "ssp-4.8b": (24, 4096, 64, 4.8e9),
        },
        source="Wortsman et al., arXiv 2309.14322: recipe [P]; counts without tables, depths and heads of 64 [M]",
        embeddings=False,
    ),
    *_family(
        _GPT | {"activation": "gelu", "positions": "rope", "tied": False, "bias": False, "vocab_size": 256000,
                "seq_len": 4096},
        {"mis-830m": (24, 1024, 16, 830e6)},
        source="Rybakov et al., arXiv 2410.16682: sizes [S]; initialisation, positions and biases [M]",
        note="a vocabulary of 256,000, untied, is what makes 24 layers of 1024 an 830M model: inferred, not read",
    ),
]  # fmt: skip
PRESETS = {recipe.name: recipe for recipe in _PRESETS}
