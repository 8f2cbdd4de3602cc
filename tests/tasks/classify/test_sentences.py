"""SST-2 files: a label, a space and a sentence a line, and nothing else."""

import gzip
from pathlib import Path

import pytest

from regtune.errors import DataError
from regtune.tasks.classify.sentences import Sentence, read_sentiment, sentiment_file

REAL = Path(__file__).parents[4] / "shared" / "data" / "sst2"


def write(path, text, encoding="utf-8"):
    raw = text.encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["stsa.binary.dev", "stsa.binary.dev.gz"])
def test_sentences_and_labels_are_read_packed_or_not(tmp_path, name):
    write(tmp_path / name, "1 a stirring film\n0 no yuks , not much .\n")
    found = read_sentiment(sentiment_file(tmp_path, "dev"))
    assert found == [Sentence(text="a stirring film", label=1), Sentence(text="no yuks , not much .", label=0)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_accents_survive_either_encoding(tmp_path, encoding):
    path = write(tmp_path / "file", "0 rancid crème brûlée .\n", encoding)
    assert read_sentiment(path)[0].text == "rancid crème brûlée ."


def test_odd_line_separators_inside_a_sentence_split_nothing(tmp_path):
    assert len(read_sentiment(write(tmp_path / "file", "1 good\x85bad\u2028ugly\r\n0 no\r\n"))) == 2


@pytest.mark.parametrize("line", ["2 good", "good film", "1", "1 ", "1\tgood", ""])
def test_a_line_of_another_shape_is_named(tmp_path, line):
    path = write(tmp_path / "file", f"1 good\n{line}\n0 bad\n")
    with pytest.raises(DataError, match=r"line 2: .*is not a label"):
        read_sentiment(path)


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"neither stsa\.binary.train nor"):
        sentiment_file(tmp_path, "train")
    with pytest.raises(DataError, match="no split 'valid'"):
        sentiment_file(tmp_path, "valid")
    with pytest.raises(DataError, match="is empty"):
        read_sentiment(write(tmp_path / "empty", ""))
    with pytest.raises(DataError, match="can't be read"):
        read_sentiment(tmp_path / "missing")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"1 good\n" * 50)[:-12])
    with pytest.raises(DataError, match="can't be read"):
        read_sentiment(tmp_path / "cut.gz")


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not here")
def test_the_real_files_hold_what_they_promise():
    sizes = [len(read_sentiment(sentiment_file(REAL, split))) for split in ("train", "dev", "test")]
    assert sizes == [6920, 872, 1821]
    assert any("brûlée" in sentence.text for sentence in read_sentiment(sentiment_file(REAL, "test")))
