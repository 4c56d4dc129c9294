"""The papers' claims as data, each with a protocol fixed beforehand, and the judges that decide them."""

from verify.claims.claim import CLAIMS, Claim, Verdict

__all__ = ["CLAIMS", "Claim", "Verdict"]
