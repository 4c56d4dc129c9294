"""Claims SNM-1 to SNM-7 of "Spike No More" (Takase et al., arXiv 2312.16903)."""

from verify.claims.claim import Claim

_SNM = "arXiv 2312.16903"

CLAIMS = (
    Claim(
        "SNM-1",
        "The embedding that enters block 1 has standard deviation sqrt(2/(5d)) for Vanilla and Embed Detach, "
        "0.632 for Scaled Embed and 1 for Embed LN.",
        f"{_SNM}, section 4 [S]",
        "Standard deviation of the stream at place 0, every method, every seed.",
        "Supported if the mean over seeds is within 1 % of the formula for every method; refuted if one is more "
        "than 3 % off; inconclusive in between.",
    ),
    Claim(
        "SNM-2",
        "The LayerNorm Jacobian's norm is 1/sigma_x; a Gaussian m x n matrix has norm about sigma (sqrt m + sqrt n).",
        f"{_SNM}, section 3 [S]",
        "Singular values of the Jacobian by autodiff at random tokens, and of random matrices of the "
        "architecture's sizes.",
        "Supported if norm x sigma is within 0.1 % of 1 at every token and the matrices' mean ratio to the "
        "formula within 10 % of 1; refuted otherwise.",
    ),
    Claim(
        "SNM-3",
        "Measured sub-layer Jacobian norms lie below the bounds, and rank the methods as the bounds do.",
        f"{_SNM}, figure 2 [S]",
        "Spectral norm of every sub-layer's Jacobian by power iteration, whole sequence, every method and seed, "
        "against the bound with our expansion of J^Z.",
        "Supported if no norm exceeds its bound and the geometric mean excess over 1 orders the methods as the "
        "bound's does; refuted if one in a hundred exceeds it or the order differs; inconclusive in between.",
    ),
    Claim(
        "SNM-4",
        "Vanilla's excess sits in the shallowest layers and grows with width; Scaled Embed and Embed LN are flat "
        "in depth.",
        f"{_SNM}, figure 2 and section 3 [S]",
        "Excess of the measured Jacobian norm over 1: first quarter of the sub-layers over the last quarter, and "
        "the first block's log-log slope against width.",
        "Supported if Vanilla's ratio is above 2 and each fix's below 2, and Vanilla's slope is above 0.25 with "
        "its interval above 0; refuted if Vanilla's ratio or slope lies below these with its whole interval.",
    ),
    Claim(
        "SNM-5",
        "Gradient norms of shallow layers at initialisation: Vanilla and Embed Detach far above Scaled Embed and "
        "Embed LN.",
        f"{_SNM}, section 3 [S]",
        "Gradient amplification (place 0 over the last place), every method, every seed.",
        "Supported if the smallest of Vanilla's and Detach's mean amplification is more than 1.5 times the largest "
        "of the fixes', with the whole bootstrap interval; refuted if the interval lies below 1.",
    ),
    Claim(
        "SNM-6",
        "At one learning rate Vanilla and Embed Detach spike, Scaled Embed and Embed LN do not.",
        f"{_SNM}, figures 1 and 3 [P]",
        "Spike events in the training loss after warm-up (7 standard deviations off the mean of the previous 100 "
        "steps, merged within 10; a divergence counts as one) at each rate, all seeds.",
        "One-sided permutation tests of Vanilla and Detach against the two fixes at each rate, Holm-corrected. "
        "Supported if one rate has p <= 0.05 and no event in the fixes there; refuted if the fixes have more at "
        "p <= 0.05 at some rate and the others at none; inconclusive otherwise.",
    ),
    Claim(
        "SNM-7",
        "A lower rate stabilises Vanilla; with the fixes a higher rate is usable and gives the lower loss.",
        f"{_SNM}, figure 5 and perplexity tables [S]",
        "Held-out loss after training at every rate, all seeds; each method's best rate by mean loss.",
        "Supported if Scaled Embed's best mean loss is lower than Vanilla's (one-sided permutation test, "
        "p <= 0.05), at a rate at least as high; refuted if Vanilla's is lower at p <= 0.05; inconclusive "
        "otherwise.",
    ),
)
