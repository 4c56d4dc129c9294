"""The papers' claims as data, each with a protocol fixed beforehand, and the judges that decide them."""

from verify.claims import embedding_scale, small_scale_proxies, spike_no_more, training_stability
from verify.claims.claim import Claim, Verdict

CLAIMS = {
    claim.id: claim
    for paper in (spike_no_more, embedding_scale, small_scale_proxies, training_stability)
    for claim in paper.CLAIMS
}

__all__ = ["CLAIMS", "Claim", "Verdict"]
