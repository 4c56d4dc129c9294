import json
import os
import sys
import tracemalloc

import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from verify.training import sources
from verify.training.corpus import CHOICES, load_corpus


def everything(corpus):
    return np.concatenate([corpus.train, corpus.held_out])


def text_of(name):
    return everything(load_corpus(name, 256)).tobytes()


def token_file(folder, values, name="tokens.bin"):
    path = folder / name
    np.asarray(values, dtype="<u2").tofile(path)
    return path


@pytest.fixture(scope="module")
def one_file(tmp_path_factory):
    """A file that every example of a property overwrites."""
    return tmp_path_factory.mktemp("corpus") / "file.bin"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Name of a corpus whose data set is a folder of one file of JSON lines, or whose shards are given by name."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def named(*shards):
        folder = tmp_path / "data"
        folder.mkdir()
        for number, rows in enumerate(shards):
            (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return f"hub:{folder}"

    return named


def test_batches_are_pure_functions_of_seed_and_step():
    corpus = load_corpus("stdlib", 256)
    first = corpus.batch(16, 4, seed=1, step=2)
    np.testing.assert_array_equal(first, corpus.batch(16, 4, seed=1, step=2))
    assert first.shape == (4, 17) and first.dtype == np.int32
    for seed, step in ((1, 3), (2, 2)):
        assert np.any(first != corpus.batch(16, 4, seed=seed, step=step))


def test_stdlib_is_python_source():
    text = text_of("stdlib")
    assert 1_000_000 < len(text) <= sources.MOST_BYTES and text.count(b"def ") > 10_000


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


@given(
    tokens=st.integers(10, 400),
    seq_len=st.integers(1, 20),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
    data=st.data(),
)
def test_fixed_windows(one_file, tokens, seq_len, share, seed, data):
    """On a file that counts up, the first token of a window is its place, so that places can be read off a batch."""
    one_file.write_bytes(np.arange(tokens, dtype="<u2").tobytes())
    corpus = load_corpus(f"tokens:{one_file}", 2**16)
    room = len(corpus.train) // (seq_len + 1)
    assume(room > 0 and len(corpus.held_out) > seq_len)
    windows = max(1, round(share * room))

    def batch(size, step, **more):
        return corpus.batch(seq_len, size, seed=seed, step=step, windows=windows, **more)

    full = batch(windows, 0)
    assert full.dtype == np.int32 and full.max() < len(corpus.train)
    np.testing.assert_array_equal(np.diff(full, axis=1), 1)
    np.testing.assert_array_equal(full, batch(windows, 1))
    places = full[:, 0]
    gaps = np.diff([*places, len(corpus.train)])
    assert places[0] == 0 and gaps.min() > seq_len and gaps.max() - gaps.min() <= 1
    size = data.draw(st.integers(1, windows))
    drawn = batch(size, 3)
    np.testing.assert_array_equal(drawn, batch(size, 3))
    assert len(set(drawn[:, 0])) == size and set(drawn[:, 0]) <= set(places)
    np.testing.assert_array_equal(
        batch(windows + 1, 3, split="held_out"),
        corpus.batch(seq_len, windows + 1, seed=seed, step=3, split="held_out"),
    )


def test_every_fixed_window_is_drawn_and_no_two_steps_or_seeds_alike():
    corpus = load_corpus("zipf", 50_000)
    batches = [corpus.batch(8, 8, seed=seed, step=step, windows=24) for seed in (0, 1) for step in range(40)]
    places = [tuple(map(tuple, batch)) for batch in batches]
    assert len(set(places)) == len(places)
    assert len({window for batch in places for window in batch}) == 24


@pytest.mark.parametrize(
    ("windows", "batch_size", "message"),
    [
        (0, 1, "windows: must be a whole number of at least 1, got 0"),
        (4, 5, "batch_size: must be at most windows = 4, got 5"),
        (11, 2, r"windows: .* has 90 tokens to train on, room for 10 windows of seq_len \+ 1 = 9 .* got 11"),
    ],
)
def test_windows_that_cannot_be_had(tmp_path, windows, batch_size, message):
    corpus = load_corpus(f"tokens:{token_file(tmp_path, np.zeros(100))}", 256)
    assert corpus.batch(8, 2, seed=0, step=0, windows=10).shape == (2, 9)
    with pytest.raises(ValueError, match=message):
        corpus.batch(8, batch_size, seed=0, step=0, windows=windows)


def test_documents_of_a_folder_in_order_of_name_with_a_separator_between_two_and_nowhere_else(tmp_path):
    """Left out, so that no separator meets another or is text: empty files, and those with a byte 0, late or early."""
    (tmp_path / "e").write_bytes(b"third\n")
    (tmp_path / "c").write_bytes(b"second")
    (tmp_path / "a").write_bytes(b"first\n")
    (tmp_path / "b").touch()
    (tmp_path / "d").write_bytes(b"x" * 10_000 + b"\0")
    (tmp_path / "f.png").write_bytes(b"\x89PNG\0\0")
    assert text_of(f"text:{tmp_path}") == b"first\n\0second\0third\n"


def test_hidden_files_of_a_folder_are_left_out(tmp_path):
    (tmp_path / "a").write_bytes(b"text")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"hidden")
    assert text_of(f"text:{tmp_path}") == b"text"


def test_a_single_file_is_taken_as_it_is(tmp_path):
    (tmp_path / "text").write_bytes(b"\0a\0\0b\0")
    assert text_of(f"text:{tmp_path / 'text'}") == b"\0a\0\0b\0"


def test_documents_of_stdlib_are_whole_modules():
    documents = text_of("stdlib").split(sources.SEPARATOR)
    assert len(documents) > 300 and all(documents)
    for document in documents[:-1:20]:
        compile(document, "module", "exec", dont_inherit=True)


def test_rows_of_a_data_set_are_documents_in_order(hub):
    name = hub(
        [{"text": "first"}, {"text": "zwölf"}], [{"text": None}, {"text": ""}, {"text": "a\0b"}, {"text": "last"}]
    )
    assert text_of(name) == "first\0zwölf\0last".encode()


def test_column_of_a_data_set(hub):
    name = hub([{"text": "no", "body": "yes", "stars": 3}])
    assert text_of(f"{name}:body") == b"yes"
    for column in ("stars", "words"):
        with pytest.raises(
            ValueError, match=f"corpus: 'hub:.*' has no text in column '{column}'; .* text, body, stars"
        ):
            load_corpus(f"{name}:{column}", 256)


def test_of_a_data_set_no_more_is_read_than_is_kept(hub, monkeypatch):
    """The third row cannot be read; two fill the limit."""
    monkeypatch.setattr(sources, "MOST_BYTES", 10)
    name = hub([{"text": "x" * 6}], [{"text": "y" * 6}], [{"text": 5}])
    assert text_of(name) == b"xxxxxx\0yyy"


@given(documents=st.lists(st.binary(max_size=4)), limit=st.integers(1, 30))
def test_packed_documents(documents, limit):
    kept = [document for document in documents if document and b"\0" not in document]
    whole, cut = sources._packed(documents), sources._packed(documents, limit)
    assert whole == b"\0".join(kept)
    assert cut in (whole[:limit], whole[: limit - 1]) and not cut.endswith(b"\0")


def test_parquet(hub, tmp_path):
    name = hub()
    pd.DataFrame({"text": ["one", "two"]}).to_parquet(tmp_path / "data" / "rows.parquet")
    assert text_of(name) == b"one\0two"


def test_data_set_that_cannot_be_read(hub, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"corpus: cannot read 'hub:.*nothing': EmptyDatasetError: .*any data files"):
        load_corpus(f"hub:{tmp_path / 'nothing'}", 256)
    with pytest.raises(ValueError, match=r"^corpus: cannot read 'hub:nobody/nothing': ConnectionError: .*Offline.*$"):
        load_corpus("hub:nobody/nothing", 256)


def test_reason_of_a_data_set_that_cannot_be_read_is_one_line(hub, monkeypatch):
    def without_configuration(*_, **__):
        raise RuntimeError("Config name is missing.\nPlease pick one among ['en', 'de']")

    monkeypatch.setattr("datasets.load_dataset", without_configuration)
    with pytest.raises(ValueError, match=r"cannot read 'hub:[^\n]*': RuntimeError: Config name is missing\.\Z"):
        load_corpus(hub(), 256)


def test_the_package_of_data_sets_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r"corpus: 'hub:books' needs the package datasets: pip install spikeless\[hub\]"
    ):
        load_corpus("hub:books", 256)


@given(values=st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=60))
def test_tokens_are_those_of_the_file(one_file, values):
    one_file.write_bytes(b"".join(value.to_bytes(2, "little") for value in values))
    sources._scanned.cache_clear()  # two examples may be closer than the clock that dates files ticks
    corpus = load_corpus(f"tokens:{one_file}", max(values) + 1)
    assert everything(corpus).tolist() == values
    with pytest.raises(
        ValueError, match=f"vocab_size: .* holds the token {max(values)} and needs {max(values) + 1} words"
    ):
        load_corpus(f"tokens:{one_file}", max(values))


@given(size=st.integers(0, 9))
def test_token_files_of_any_small_size(one_file, size):
    one_file.write_bytes(bytes(size))
    if size % 2 or size == 0:
        with pytest.raises(ValueError, match=f"corpus: .* has {size} bytes, expected two for each token"):
            load_corpus(f"tokens:{one_file}", 256)
    else:
        assert len(everything(load_corpus(f"tokens:{one_file}", 256))) == size // 2


def test_largest_token_and_digest_are_of_the_whole_file(tmp_path):
    """A file larger than the pieces it is read in, and one that differs in its first token, or its last."""
    digests = {load_corpus(f"tokens:{token_file(tmp_path, np.zeros(sources._CHUNK + 3))}", 1).digest}
    for number, place in enumerate((0, -1)):
        tokens = np.zeros(sources._CHUNK + 3)
        tokens[place] = 300
        path = token_file(tmp_path, tokens, f"{number}.bin")
        digests.add(load_corpus(f"tokens:{path}", 301).digest)
        with pytest.raises(ValueError, match="holds the token 300 and needs 301 words, got 300"):
            load_corpus(f"tokens:{path}", 300)
    assert len(digests) == 3


def test_digest_of_a_file_that_changes(tmp_path):
    path = token_file(tmp_path, [1, 2, 3])
    before = load_corpus(f"tokens:{path}", 256).digest
    assert load_corpus(f"tokens:{path}", 256).digest == before
    token_file(tmp_path, [1, 2, 4])
    os.utime(path, ns=(0, 1))
    later = load_corpus(f"tokens:{path}", 256).digest
    token_file(tmp_path, [1, 2, 4, 0])
    os.utime(path, ns=(0, 1))
    assert len({before, later, load_corpus(f"tokens:{path}", 256).digest}) == 3


def test_val_beside_train_is_what_is_held_out(tmp_path):
    train, other = token_file(tmp_path, range(20), "train.bin"), token_file(tmp_path, range(20), "other.bin")
    alone = load_corpus(f"tokens:{train}", 256)
    assert (len(alone.train), len(alone.held_out)) == (18, 2)
    val = token_file(tmp_path, [7, 8], "val.bin")
    both = load_corpus(f"tokens:{train}", 256)
    assert both.train.tolist() == list(range(20)) and both.held_out.tolist() == [7, 8]
    assert load_corpus(f"tokens:{other}", 256).held_out.tolist() == [18, 19]
    token_file(tmp_path, [7, 8, 9], "val.bin")
    assert len({alone.digest, both.digest, load_corpus(f"tokens:{train}", 256).digest}) == 3
    token_file(tmp_path, [999], "val.bin")
    with pytest.raises(ValueError, match=r"val.bin' holds the token 999 and needs 1000 words, got 256"):
        load_corpus(f"tokens:{train}", 256)
    val.write_bytes(b"odd")
    with pytest.raises(ValueError, match=r"val.bin' has 3 bytes"):
        load_corpus(f"tokens:{train}", 256)


def test_of_a_large_file_little_is_in_memory(tmp_path):
    """200 MB that take no room on disk: no copy of them shows up in this process, and of their pages 2 MB a window."""
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    tracemalloc.start()
    try:
        resident = psutil.Process().memory_info().rss
        corpus = load_corpus(f"tokens:{path}", 256)
        batches = [corpus.batch(1024, 2, seed=0, step=0, windows=windows) for windows in (None, 500)]
        grown, allocated = psutil.Process().memory_info().rss - resident, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert grown < 20e6 and allocated < 20e6
    assert isinstance(corpus.train, np.memmap) and not any(isinstance(batch, np.memmap) for batch in batches)


def test_words_are_the_text(monkeypatch):
    """Spelled out again token by token; a vocabulary of 256 leaves bytes; frequent long pieces come first."""
    content = b"the cat and the dog:\n    the\0end"
    monkeypatch.setattr(sources, "text", lambda name: content)
    np.testing.assert_array_equal(sources.words(256), np.frombuffer(content, np.uint8))
    tokens = sources.words(258)  # "the" saves 6 bytes, four spaces 3
    assert tokens.tolist() == [256, *b" cat and ", 256, *b" dog:\n", 257, 256, 0, *b"end"]
    assert sources.words(1000).max() < 256 + 6  # cat, and, dog, end too, and no single byte


def test_letters_are_the_most_frequent_bytes(monkeypatch):
    monkeypatch.setattr(sources, "text", lambda name: b"banana split")  # a 3, n 2, then in order of the bytes
    assert sources.letters(2).tolist() == [0, 1, 0, 1, 0]
    assert sources.letters(4).tolist() == [3, 0, 1, 0, 1, 0, 2]
    assert sorted(set(sources.letters(300).tolist())) == list(range(9))


def test_every_letter_of_the_library_is_in_use():
    corpus = load_corpus("letters", 64)
    assert set(np.unique(corpus.train)) == set(range(64)) and np.ptp(everything(corpus)) == 63


def test_zipf_has_its_law_and_is_reproducible():
    tokens = everything(load_corpus("zipf", 10))
    np.testing.assert_array_equal(tokens, sources.zipf(10))
    expected = 1 / np.arange(1, 11)
    expected /= expected.sum()
    share = np.bincount(tokens, minlength=10) / len(tokens)
    np.testing.assert_allclose(share, expected, atol=6 * np.sqrt(0.25 / len(tokens)))


@pytest.mark.parametrize(
    ("name", "vocab_size", "message"),
    [
        *(
            (name, 256, f"corpus: unknown value '{name}'; choose one of {CHOICES}")
            for name in ("wikipedia", "text:", "hub:")
        ),
        ("tokens:", 256, "corpus: unknown value 'tokens:'"),
        ("stdlib:3.11", 256, "corpus: unknown value 'stdlib:3.11'"),
        ("text:/no/such/file", 256, "corpus: no file or folder '/no/such/file'"),
        ("tokens:/no/such/file", 256, "corpus: no file '/no/such/file'; give the path of a file of uint16 tokens"),
        ("tokens:/", 256, "corpus: no file '/'"),
        ("stdlib", 255, "vocab_size: 'stdlib' is read as bytes and needs 256 words, got 255"),
        ("hub:nobody/nothing", 255, "vocab_size: 'hub:nobody/nothing' is read as bytes and needs 256 words, got 255"),
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
