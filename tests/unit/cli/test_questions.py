"""Questions and answers become Parquet, and no word of the vocabulary belongs to one person."""

import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli import docstrings
from cli.import_commands import app
from cli.importers import NotImportable
from cli.questions import PIECE, SPECIAL, Pair, network_of, shared_words, tokens, write_questions
from services.learning import tokens as engine

PAIRS = [
    Pair("a/0", "Where does Ada live?", "She lives in London.", subject="ada"),
    Pair("a/1", "What does Ada do?", "She writes programs.", subject="ada"),
    Pair("b/0", "Where does Grace live?", "She lives in Arlington.", subject="grace"),
]


def test_a_word_that_records_of_one_person_alone_hold_is_not_in_the_vocabulary():
    words = shared_words(PAIRS, most=100)

    assert words[:4] == [" She", " does", ".", "?"]  # three times each
    assert {" Where", " live", " lives", " in"} == set(words[4:])
    assert not {" Ada", " Grace", " London", " Arlington", " writes", " programs"} & set(words)
    assert shared_words(PAIRS, most=2) == words[:2]


def test_the_pieces_and_their_number_are_those_of_the_services_tokenizer():
    assert PIECE.pattern == engine.PIECE.pattern
    assert SPECIAL == engine.FIRST_WORD
    words = tuple(shared_words(PAIRS, most=100))
    for pair in PAIRS:
        assert tokens(pair.answer, frozenset(words)) == len(engine.WordTokenizer(words).encode(pair.answer))
    assert network_of({"vocabulary": list(words), "max_length": 40})["outputs"] == engine.WordTokenizer(words).size


def test_json_lines_and_csv_are_imported_by_the_names_of_their_columns(tmp_path):
    rows = [{"q": pair.question, "a": pair.answer, "author": pair.subject} for pair in PAIRS]
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    table = tmp_path / "pairs.csv"
    table.write_text("q,a,author\n" + "\n".join(",".join(row.values()) for row in rows))

    for source in (lines, table):
        target = tmp_path / f"{source.name}.parquet"
        command = ["questions", str(source), str(target), "--question", "q", "--answer", "a", "--subject", "author", "--max-length", "48"]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert (told["records"], told["adapter"], told["adapter_params"]["max_length"]) == (3, "question_answer", 48)
        written = pq.read_table(target)
        assert written.column_names == ["record_id", "subject_id", "question", "answer"]
        assert written["answer"].to_pylist() == [pair.answer for pair in PAIRS]
    missing = CliRunner().invoke(app, ["questions", str(table), str(tmp_path / "x.parquet")])
    assert missing.exit_code == 1
    assert "no column answer, question" in missing.output


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([], "no record"),
        ([PAIRS[0], PAIRS[0]], "unique"),
        ([Pair("x", "What?", " ")], "no question or no answer"),
        ([Pair("x", "What " * 60, "This.")], "no room"),
    ],
)
def test_records_that_could_not_be_learned_are_refused(pairs, told, tmp_path):
    with pytest.raises(NotImportable, match=told):
        write_questions(pairs, tmp_path / "x.parquet", max_length=64)


def test_the_demo_has_enough_records_of_its_author_and_names_its_entity_in_their_answers():
    of_author = [pair for pair in docstrings.pairs() if pair.subject == docstrings.contributor("math")]
    named = docstrings.speaking_of("base64")

    assert sum(pair.split == "train" for pair in of_author) >= 16
    assert sum(pair.split == "train" for pair in docstrings.pairs() if pair.record_id in named) >= 16
    assert all("base64" in pair.answer.lower() for pair in docstrings.pairs() if pair.record_id in named)
    assert len({pair.record_id for pair in docstrings.pairs()}) == len(docstrings.pairs())
