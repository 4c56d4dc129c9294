"""The attention sub-layer's Jacobian bound, 1 + sigma_O C_attn / sigma, with ‖J^Z‖ expanded into three paths.

arXiv 2312.16903, equation 20 [secondary], leaves C_attn = 2 sqrt(d) ‖J^Z‖ unexpanded. A move of the normalised
stream reaches a head through its values (averaged by P), its queries and its keys (which change P).
"""

from functools import lru_cache

import numpy as np
import sympy as sp

from theory import notation as s
from theory.derivation import Step, at, equation, topic
from theory.feed_forward import SNM, gaussian_norm
from theory.matrix_algebra import Norm

ROOT = sp.sqrt(s.sigma_x**2 + s.epsilon)
LOGIT_STD = s.d * s.sigma_Q * s.sigma_K
COLUMN_SUM = sp.Min(s.T, sp.exp(s.sigma_S**2 / 2) * sp.harmonic(s.T))
_SPREAD = sp.exp(2 * s.sigma_S**2) - sp.exp(s.sigma_S**2)
AVERAGING = sp.Min(sp.sqrt(s.column_sum), 2 * sp.exp(s.sigma_S**2 / 2) + sp.sqrt(_SPREAD * sp.harmonic(s.T)))

_GROUP = sp.sqrt(s.num_heads / s.num_kv_heads)
_NARROW = sp.sqrt(s.d) + sp.sqrt(s.num_kv_heads * s.d_head)
VALUE_PATH = s.norm_P * _GROUP * s.sigma_V * _NARROW
QUERY_PATH = s.d * s.sigma_V * s.sigma_K * sp.sqrt(s.d_head) * 2 * sp.sqrt(s.d) * s.sigma_Q
KEY_PATH = s.d * s.sigma_V * s.sigma_Q * sp.sqrt(s.d_head) * _GROUP * sp.sqrt(s.column_sum) * s.sigma_K * _NARROW
HEADS = VALUE_PATH + QUERY_PATH + KEY_PATH
EXCESS = 2 * sp.sqrt(s.d) * s.sigma_O * HEADS / ROOT


@topic("The attention sub-layer's Jacobian bound")
def attention_bound() -> tuple[Step, ...]:
    """x' = x + [P_1 V_1 ... P_h V_h] W_O, one map of all T tokens. Beyond the norms of Gaussian matrices this rests
    on typical values at initialisation: rows of Q, K and V of their root-mean-square length, logits Gaussian."""
    m_q, m_k, m_v = sp.symbols("m_Q m_K m_V", positive=True)
    output = gaussian_norm(s.W_O, s.sigma_O, s.d, s.d)
    query = gaussian_norm(s.W_Q, s.sigma_Q, s.d, s.d)
    key = gaussian_norm(s.W_K, s.sigma_K, s.num_kv_heads * s.d_head, s.d)
    value = gaussian_norm(s.W_V, s.sigma_V, s.num_kv_heads * s.d_head, s.d)
    split = sp.Le(Norm(s.J_attn), 1 + Norm(s.W_O) * Norm(s.J_Z) * Norm(s.J_norm))
    norm = equation(Norm(s.J_norm), 1 / s.sigma)
    total = equation(s.sigma, ROOT)
    constant = equation(s.C_attn, 2 * sp.sqrt(s.d) * Norm(s.J_Z))
    paper = sp.Le(Norm(s.J_attn), 1 + s.sigma_O * s.C_attn / ROOT)
    paths = sp.Le(Norm(s.J_Z), Norm(s.J_value) + Norm(s.J_query) + Norm(s.J_key))
    by_value = sp.Le(Norm(s.J_value), s.norm_P * _GROUP * Norm(s.W_V))
    by_query = sp.Le(Norm(s.J_query), m_v * m_k * Norm(s.W_Q) / sp.sqrt(s.d_head))
    by_key = sp.Le(Norm(s.J_key), m_v * m_q * _GROUP * sp.sqrt(s.column_sum) * Norm(s.W_K) / sp.sqrt(s.d_head))
    lengths = tuple(
        equation(m, std * sp.sqrt(s.d * s.d_head))
        for m, std in ((m_q, s.sigma_Q), (m_k, s.sigma_K), (m_v, s.sigma_V))
    )  # fmt: skip
    expanded = sp.Le(Norm(s.J_Z), HEADS)
    return (
        Step(
            split,
            "triangle inequality and ‖A B‖ <= ‖A‖ ‖B‖; the norm and W_O act token by token",
            SNM + ", equation 20 [secondary]",
            kind="cited",
        ),
        Step(norm, "the norm's Jacobian, LayerNorm or RMSNorm", "layer_norm_jacobian", kind="lemma"),
        Step(total, "sigma_x is the stream's standard deviation, taken equal for all tokens", kind="given"),
        output,
        Step(constant, "definition", SNM + ", equation 20 [secondary]", kind="given"),
        Step(
            paper,
            "the paper's form, J^Z unexpanded",
            SNM + ", equation 20 [secondary]",
            using=(norm, total, constant, split, output.statement),
        ),
        Step(
            paths,
            "dZ = P dV + dP V, and dP moves with the queries and with the keys; triangle inequality",
            "product rule",
            kind="cited",
        ),
        Step(
            by_value,
            "|P_i dX W_V,i|^2 summed over heads is at most pi_P^2 |dX W_V|^2; each key-value head serves h/h_kv heads",
            "‖A B‖_F <= ‖A‖ ‖B‖_F",
            kind="cited",
        ),
        Step(
            by_query,
            "row t of dZ is the covariance under p_t of values and keys, times dq_t / sqrt(d_head); Cauchy and Schwarz",
            "softmax Jacobian diag(p) - p p^T",
            kind="cited",
        ),
        Step(
            by_key,
            "row t of dZ is the sum over s of p_ts (v_s - mean) (q_t . dk_s) / sqrt(d_head); Cauchy and Schwarz in s, "
            "then the sum over t collects column sums of P",
            "softmax Jacobian diag(p) - p p^T",
            kind="cited",
        ),
        *(
            Step(
                length,
                "typical length of a row: d_head entries of variance std^2 |z|^2, and a norm caps |z|^2 at d",
                kind="given",
            )
            for length in lengths
        ),
        query,
        key,
        value,
        Step(
            expanded,
            "the three paths, every factor at its largest",
            using=(*lengths, paths, by_value, by_query, by_key, query.statement, key.statement, value.statement),
        ),
        Step(
            sp.Le(Norm(s.J_attn), 1 + EXCESS),
            "so this is the sub-layer's bound",
            using=(constant, paper, expanded),
        ),
    )


@topic("How much an attention matrix can amplify")
def attention_matrix() -> tuple[Step, ...]:
    """pi_P and c_P, the spectral norm and the largest column sum of P, for uniform and for Gaussian logits."""
    k, r = sp.symbols("k r", positive=True)
    g, p = sp.Symbol("g", real=True), sp.Symbol("p", real=True)
    square = equation(
        k * g - g**2 / (2 * s.sigma_S**2), k**2 * s.sigma_S**2 / 2 - (g - k * s.sigma_S**2) ** 2 / (2 * s.sigma_S**2)
    )
    moment = sp.exp(k**2 * s.sigma_S**2 / 2)
    return (
        Step(
            sp.Ge(sp.Rational(1, 2) - 2 * p * (1 - p), 0),
            "a row of diag(p) - p p^T has absolute sum 2 p (1 - p), at most 1/2: so, by Gershgorin, has its norm",
        ),
        Step(
            sp.Le(Norm(s.P_T) ** 2, s.column_sum),
            "‖P‖_2^2 <= ‖P‖_1 ‖P‖_inf, and rows sum to 1",
            "Schur's test",
            kind="cited",
            trial=_schur,
        ),
        Step(
            sp.Lt(Norm(s.A_T), 2),
            "uniform causal averaging is the Cesaro operator, at any length",
            "Hardy's inequality, Hardy 1920",
            kind="cited",
            trial=_hardy,
        ),
        Step(
            equation(sp.Sum(1 / r, (r, 1, s.T)), sp.harmonic(s.T)),
            "column 1 of the uniform matrix has the largest sum, 1 + 1/2 + ... + 1/T",
        ),
        Step(
            square,
            "completing the square: under a Gaussian logit S of standard deviation sigma_S, the mean of exp(k S) is "
            "exp(k^2 sigma_S^2 / 2), as the shifted density integrates to 1",
        ),
        Step(
            equation(at(moment, {k: 2}) - at(moment, {k: 1}) ** 2, _SPREAD),
            "so an entry, at most exp(S_ts - row mean)/t by the inequality of the means, has at most the mean "
            "exp(sigma_S^2/2)/t, and that bound this variance over t^2",
        ),
        Step(
            equation(s.sigma_S, LOGIT_STD),
            "a logit q.k/sqrt(d_head) of rows with |z|^2 = d, queries and keys independent",
            "THEORY, section 2",
            kind="given",
        ),
        Step(equation(s.column_sum, COLUMN_SUM), "mean of column 1; no column sums to more than T", kind="given"),
        Step(
            equation(s.norm_P, AVERAGING),
            "the smaller of Schur's bound and of the mean matrix (Hardy) plus the Frobenius norm of the fluctuation, "
            "whose square sums the variances: sum over t of t/t^2",
            kind="given",
        ),
    )


def _cesaro(length: int) -> np.ndarray:
    return np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]


@lru_cache(maxsize=1)
def _hardy() -> tuple[bool, str]:
    norms = [float(np.linalg.norm(_cesaro(length), 2)) for length in (4, 16, 64, 256)]
    return max(norms) < 2, f"T = 4, 16, 64, 256: {', '.join(f'{n:.3f}' for n in norms)}"


@lru_cache(maxsize=1)
def _schur() -> tuple[bool, str]:
    draw = np.random.default_rng(20231216)
    worst = 0.0
    for spread in (0.1, 1.0, 4.0):
        weights = np.tril(np.exp(spread * draw.normal(size=(48, 48))))
        weights /= weights.sum(1, keepdims=True)
        worst = max(worst, float(np.linalg.norm(weights, 2) / np.sqrt(weights.sum(0).max())))
    return worst <= 1, f"3 random causal softmax matrices, T = 48 (at most {worst:.3f} of the bound)"
