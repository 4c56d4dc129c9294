import numpy as np
import pytest

from verify.training.corpus import load_corpus


def test_batches_are_pure_functions_of_seed_and_step():
    corpus = load_corpus("stdlib", 256)
    first = corpus.batch(16, 4, seed=1, step=2)
    np.testing.assert_array_equal(first, corpus.batch(16, 4, seed=1, step=2))
    assert first.shape == (4, 17) and first.dtype == np.int32
    for seed, step in ((1, 3), (2, 2)):
        assert np.any(first != corpus.batch(16, 4, seed=seed, step=step))


def test_stdlib_is_python_source():
    text = bytes(load_corpus("stdlib", 256).tokens.tobytes())
    assert len(text) > 1_000_000 and text.count(b"def ") > 10_000


def test_training_never_sees_the_held_out_tenth(tmp_path):
    """A file of 900 a and 100 b: training batches hold a alone, held-out ones b alone."""
    path = tmp_path / "text"
    path.write_bytes(b"a" * 900 + b"b" * 100)
    corpus = load_corpus(f"text:{path}", 256)
    assert set(np.unique(corpus.batch(50, 200, seed=0, step=0))) == {ord("a")}
    assert set(np.unique(corpus.batch(50, 200, seed=0, step=0, split="held_out"))) == {ord("b")}


def test_windows_reach_both_ends(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(bytes(range(250)))
    batch = load_corpus(f"text:{path}", 256).batch(220, 200, seed=0, step=0)
    assert batch.min() == 0 and batch.max() == 224
    np.testing.assert_array_equal(np.diff(batch, axis=1), 1)


def test_folder_is_read_in_order_of_name(tmp_path):
    (tmp_path / "b").write_bytes(b"second")
    (tmp_path / "a").write_bytes(b"first")
    assert bytes(load_corpus(f"text:{tmp_path}", 256).tokens.tobytes()) == b"first\nsecond"


def test_hidden_and_binary_files_of_a_folder_are_left_out(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"hidden")
    assert bytes(load_corpus(f"text:{tmp_path}", 256).tokens.tobytes()) == b"text"


def test_zipf_has_its_law_and_is_reproducible():
    tokens = load_corpus("zipf", 10).tokens
    np.testing.assert_array_equal(tokens, load_corpus("zipf", 10).tokens)
    expected = 1 / np.arange(1, 11)
    expected /= expected.sum()
    share = np.bincount(tokens, minlength=10) / len(tokens)
    np.testing.assert_allclose(share, expected, atol=6 * np.sqrt(0.25 / len(tokens)))


@pytest.mark.parametrize(
    ("name", "vocab_size", "message"),
    [
        ("wikipedia", 256, "corpus: unknown value 'wikipedia'; choose one of stdlib"),
        ("text:/no/such/file", 256, "corpus: no file or folder '/no/such/file'"),
        ("stdlib", 255, "vocab_size: 'stdlib' is read as bytes and needs 256 words, got 255"),
    ],
)
def test_bad_names(name, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(name, vocab_size)


def test_shorter_than_one_sequence(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match=r"corpus: .* has 4 tokens .* seq_len \+ 1 = 9"):
        load_corpus(f"text:{path}", 256).batch(8, 1, seed=0, step=0)
