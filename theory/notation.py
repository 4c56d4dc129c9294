"""Every symbol of the theory, once: its assumptions, what it means and its unit.

The names follow "Spike No More" (Takase et al., arXiv 2312.16903). Rules and derivations use these objects,
never a fresh `sympy.Symbol`, so that two expressions that look the same are the same.
"""

from dataclasses import dataclass

import sympy as sp


@dataclass(frozen=True)
class Entry:
    """One line of the notation table."""

    symbol: sp.Symbol | sp.MatrixSymbol
    meaning: str
    unit: str


TABLE: dict[str, Entry] = {}


def _symbol(name: str, meaning: str, unit: str = "1", **assumptions: bool) -> sp.Symbol:
    if name in TABLE:
        raise ValueError(f"symbol {name!r} is already defined as: {TABLE[name].meaning}")
    symbol = sp.Symbol(name, **assumptions)
    TABLE[name] = Entry(symbol, meaning, unit)
    return symbol


def _size(name: str, meaning: str, unit: str) -> sp.Symbol:
    return _symbol(name, meaning, unit, integer=True, positive=True)


d = _size("d", "width of the residual stream, d_model", "coordinates")
d_ff = _size("d_ff", "width of the feed-forward layer", "coordinates")
d_head = _size("d_head", "width of one attention head", "coordinates")
V = _size("V", "number of words in the vocabulary", "words")
T = _size("T", "sequence length", "tokens")
N = _size("N", "number of blocks (num_layers), each of two sub-layers", "blocks")
layer = _size("n", "number of a block, counted from 1 at the input", "blocks")
fan_in = _size("fan_in", "number of inputs of a weight matrix", "coordinates")
fan_out = _size("fan_out", "number of outputs of a weight matrix", "coordinates")
num_heads = _size("h", "number of attention heads", "heads")
num_kv_heads = _size("h_kv", "number of key and value heads; h for plain multi-head attention", "heads")


def _positive(name: str, meaning: str, unit: str = "1") -> sp.Symbol:
    return _symbol(name, meaning, unit, positive=True)


def _non_negative(name: str, meaning: str, unit: str = "1") -> sp.Symbol:
    return _symbol(name, meaning, unit, nonnegative=True)


epsilon = _non_negative("epsilon", "number a norm adds to the variance, norm_epsilon", "stream unit squared")
sigma = _positive("sigma", "what a norm divides by: root of (variance + epsilon)", "stream unit")
sigma_x = _positive("sigma_x", "standard deviation of the stream that enters attention", "stream unit")
sigma_y = _positive("sigma_x'", "standard deviation of the stream that enters the feed-forward layer", "stream unit")
sigma_0 = _positive("sigma_0", "standard deviation of the stream that enters block 1", "stream unit")
embedding_std = _positive("sigma_E", "standard deviation of the entries of the embedding's table", "stream unit")
embedding_multiplier = _positive("m_E", "factor on the rows of the embedding's table")
sigma_1 = _positive("sigma_1", "standard deviation of the entries of W_1, feed_forward.up")
sigma_2 = _positive("sigma_2", "standard deviation of the entries of W_2, feed_forward.down", "stream unit")
sigma_g = _positive("sigma_g", "standard deviation of the entries of W_g, feed_forward.gate")
sigma_Q = _positive("sigma_Q", "standard deviation of the entries of W_Q, attention.query")
sigma_K = _positive("sigma_K", "standard deviation of the entries of W_K, attention.key")
sigma_V = _positive("sigma_V", "standard deviation of the entries of W_V, attention.value")
sigma_O = _positive("sigma_O", "standard deviation of the entries of W_O, attention.output", "stream unit")
sigma_S = _positive("sigma_S", "standard deviation of an attention logit about its row's mean", "nats")
sigma_W = _positive("sigma_W", "standard deviation of the entries of a Gaussian matrix W")
lipschitz = _positive("Lambda_F", "Lipschitz constant of the activation, sup |F'|")
activation_gain = _positive(
    "phi_F",
    "root mean square of what the activation returns over that of its input; less its mean where a norm takes it",
)
at_zero = _non_negative("F_0", "size of the activation at 0, |F(0)|")
delta = _positive("delta", "variance that one block adds to the stream", "stream unit squared")
variance = _positive("nu", "variance of a token's coordinates in the stream", "stream unit squared")
correlation = _non_negative("rho", "mean correlation of two tokens of a sequence in the stream")
gradient_correlation = _non_negative("gamma", "mean correlation of the loss's gradients at two tokens of a sequence")
variance_after = _positive("nu_next", "variance nu after a residual addition", "stream unit squared")
correlation_after = _non_negative("rho_next", "mean token correlation rho after a residual addition")
gradient_ratio = _positive("r", "squared gradient norm before a residual addition over that after it")
gradient_correlation_before = _non_negative("gamma_before", "correlation gamma before a residual addition")
shortcut_square = _positive("alpha", "square of the shortcut's factor in one residual addition")
query_gain = _positive("g_Q", "variance of a query's coordinates over that of the stream's, d sigma_Q^2")
key_gain = _positive("g_K", "variance of a key's coordinates over that of the stream's, d sigma_K^2")
logit_gap = _positive("s", "standard deviation of the difference of two attention logits of one row", "nats")
turned = _positive("u_c", "one less the mean cosine of the angles by which RoPE turns a key on to another position")
near_tie_rate = _positive(
    "c", "rate of the gradient's growth through near-ties of logits, of no closed form", "1 / blocks^p"
)
forward_gain = _positive("w", "variance that a sub-layer writes into the stream", "stream unit squared")
backward_gain = _positive("beta", "what a sub-layer adds to the gradient's square, times the stream's variance")
shortcut_loss = _positive("c_a", "what all shortcuts take off the stream's variance, N (1 - alpha) for N -> oo")
written_in_all = _positive(
    "w_Sigma",
    "variance that all blocks write, each over the share that the shortcuts before it leave",
    "stream unit squared",
)
forward_shared = _non_negative(
    "w_rho", "covariance of two tokens that a sub-layer writes into the stream", "stream unit squared"
)
backward_shared = _non_negative(
    "beta_gamma", "the same for two tokens' gradients: what it adds to their product, times nu"
)
sum_divisor = _positive("p", "what a norm on the sum divides the variance by; 1 where there is none")
value_gain = _positive("g_V", "variance of a value's coordinates over that of what attention reads, d sigma_V^2")
output_gain = _positive("g_O", "variance that W_O writes over that of what it reads, d sigma_O^2")
up_gain = _positive("g_1", "variance that W_1 writes over that of what it reads, d sigma_1^2")
gate_gain = _positive("g_g", "variance that W_g writes over that of what it reads, d times that of its entries")
down_gain = _positive("g_2", "variance that W_2 writes over that of what it reads, d_ff sigma_2^2")
participation = _positive("h_A", "mean over positions of the summed squares of a row of the attention matrix")
column_square = _positive("k_A", "mean over positions of the squared column sum of the attention matrix")
row_square = _positive(
    "r_A", "mean over positions of the squared row sum of the attention matrix; 1 but for clipped ones"
)
total_square = _positive("t_A", "squared sum of all entries of the attention matrix over T; T where rows sum to 1")
amplification = _symbol("a", "amplification, gradient norm at block 1 over that after block N", positive=True)
C_ffn = _positive("C_ffn", "feed-forward constant, (sqrt d + sqrt d_ff)^2", "coordinates")
C_attn = _positive("C_attn", "attention constant, 2 sqrt(d) ||J^Z||")
norm_P = _positive("pi_P", "spectral norm of a head's attention matrix P over the T positions")
column_sum = _positive("c_P", "largest column sum of a head's attention matrix P")
row_length = _non_negative("m_P", "length of a row of a head's attention matrix; 1/sqrt(T) where it attends evenly")
gradient_above = _positive("g_u", "root mean square of a gradient's coordinates above a norm", "nats")
gradient_rms = _positive("g_x", "root mean square of a gradient's coordinates in the stream", "nats / stream unit")
adam_epsilon = _positive("epsilon_A", "number Adam adds to the root of its second moment", "nats / stream unit")
tolerance = _positive("q_tol", "share by which a quantity may differ from its limit")
norm_Q = _positive("nu_Q", "bound on the norm of W_Q")
norm_K = _positive("nu_K", "bound on the norm of W_K")
norm_V = _positive("nu_V", "bound on the norm of W_V")
norm_O = _positive("nu_O", "bound on the norm of W_O", "stream unit")
norm_1 = _positive("nu_1", "bound on the norm of W_1")
norm_2 = _positive("nu_2", "bound on the norm of W_2", "stream unit")
norm_g = _positive("nu_g", "bound on the norm of W_g, feed_forward.gate; 0 where there is none")
length_q = _positive("m_q", "length of a head's query")
length_k = _positive("m_k", "length of a head's key")
length_v = _positive("m_v", "length of a head's value")
slope_q = _positive("s_q", "norm of the Jacobian of the norm on queries; 1 where there is none")
slope_k = _positive("s_k", "norm of the Jacobian of the norm on keys; 1 where there is none")
slope_v = _positive("s_v", "norm of the Jacobian of the norm on values; 1 where there is none")
slope_inner = _positive("s_inner", "norm of the Jacobian of the norm before the last matrix; 1 where there is none")
slope_in = _positive("s_in", "norm of the Jacobian of the norm on the input, times its factor")
slope_out = _positive("s_out", "norm of the Jacobian of the norm on the output; 1 where there is none")
slope_post = _positive("s_post", "norm of the Jacobian of the norm on the sum; 1 where there is none")
temperature = _positive("tau", "factor on the attention logits")
cap = _positive("c_cap", "soft cap on the attention logits", "nats")
scale_q = _positive("gamma_q", "largest scale of the norm on queries; or the gain of W_Q")
scale_k = _positive("gamma_k", "largest scale of the norm on keys; or the gain of W_K")
scale_f = _positive("gamma_f", "largest scale of the final norm")
logit_scale = _positive("c_out", "factor on the output logits")
length_w = _positive("m_w", "length of the longest row of the head, one word's")
length_z = _non_negative("m_z", "length of a token that attention or the head reads")
steepness = _positive("kappa", "steepest slope of the clip on probabilities, high - low; 1 where there is none")
largest_up = _positive("u_max", "largest entry of W_1 z in a gated unit")
largest_active = _positive("F_max", "largest entry of F(W_g z) in a gated unit")
extreme = _positive("l_max", "largest entry of a gated unit over the standard deviation of its entries")
input_factor = _positive("c_in", "factor on the sub-layer's input, after the norm where there is one")
shortcut_factor = _positive("a_s", "factor on the shortcut")
branch_factor = _non_negative("b_s", "factor on the sub-layer's output")
part_norm = _non_negative("J_part", "bound on the norm of the sub-layer's own Jacobian")
excess_attn = _non_negative("r_attn", "what the attention bound exceeds 1 by")
excess_ffn = _non_negative("r_ffn", "what the feed-forward bound exceeds 1 by")


def _matrix(name: str, rows: sp.Expr, cols: sp.Expr, meaning: str, unit: str = "1") -> sp.MatrixSymbol:
    if name in TABLE:
        raise ValueError(f"symbol {name!r} is already defined as: {TABLE[name].meaning}")
    symbol = sp.MatrixSymbol(name, rows, cols)
    TABLE[name] = Entry(symbol, meaning, unit)
    return symbol


e = _matrix("e", d, sp.S.One, "the vector of d ones")
x = _matrix("x", d, sp.S.One, "one token of the residual stream", "stream unit")
y = _matrix("y", d, sp.S.One, "the centred token, C x", "stream unit")
z = _matrix("z", d, sp.S.One, "the token a norm returns")
v = _matrix("v", d, sp.S.One, "a direction in which the stream is moved", "stream unit")
C = _matrix("C", d, d, "centering, the identity less the mean over coordinates")
H = _matrix("H", d, d, "orthogonal projector on the direction of z")
Q = _matrix("Q", d, d, "orthogonal projector on what a norm leaves free")
P = _matrix("R", d, d, "Jacobian of a norm times what it divides by")
J_norm = _matrix("J_norm", d, d, "Jacobian of the norm, dz/dx", "1 / stream unit")
W_1 = _matrix("W_1", d_ff, d, "feed_forward.up")
W_2 = _matrix("W_2", d, d_ff, "feed_forward.down", "stream unit")
D_F = _matrix("D_F", d_ff, d_ff, "diagonal of the activation's derivatives F'")
J_ffn = _matrix("J_ffn", d, d, "Jacobian of the feed-forward sub-layer with its shortcut, dy/dx'")
W_Q = _matrix("W_Q", d, d, "attention.query")
W_K = _matrix("W_K", num_kv_heads * d_head, d, "attention.key")
W_V = _matrix("W_V", num_kv_heads * d_head, d, "attention.value")
W_O = _matrix("W_O", d, d, "attention.output", "stream unit")
J_attn = _matrix("J_attn", T * d, T * d, "Jacobian of the attention sub-layer with its shortcut, dx'/dx")
J_Z = _matrix("J_Z", T * d, T * d, "Jacobian of the concatenated heads before W_O by the normalised stream")
J_value = _matrix("J_value", T * d, T * d, "part of J_Z through the values")
J_query = _matrix("J_query", T * d, T * d, "part of J_Z through the queries")
J_key = _matrix("J_key", T * d, T * d, "part of J_Z through the keys")
A_T = _matrix("A_T", T, T, "uniform causal averaging: row t has 1/t in columns 1 to t")
P_T = _matrix("P_T", T, T, "a head's causal attention matrix, its rows sum to 1")
K = _matrix("K", T, T, "mean products of the stream's coordinates at two positions", "stream unit squared")
