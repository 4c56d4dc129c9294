"""The papers' figures, drawn from this project's own runs."""
