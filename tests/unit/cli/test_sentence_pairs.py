import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli.import_commands import app
from cli.importers import NotImportable
from cli.sentence_pairs import import_stsb

OWN = {
    "sts-train.csv": 'main-captions\tMSRvid\t2012test\t0001\t5.000\tA "plane" is taking off.\tAn air plane is taking off.\n',
    "sts-test.csv": "main-news\tMSRpar\t2012test\t0024\t0.250\tShares fell.\tA dog runs.\tsource a\tsource b\n",
}
GLUE = (
    "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA man plays.\tA person plays.\t3.800\n"
)


def folder(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_benchmark_is_written_with_its_parts_as_splits(tmp_path):
    done = import_stsb(folder(tmp_path, OWN), tmp_path / "stsb.parquet")
    rows = pq.read_table(done.path).to_pylist()
    assert (done.records, done.adapter, done.adapter_params) == (2, "text_pair", {"target": "number", "max_length": 32})
    assert rows == [
        {
            "record_id": "sts-train-00001",
            "split": "train",
            "label": 5.0,
            "first": 'A "plane" is taking off.',
            "second": "An air plane is taking off.",
        },
        {"record_id": "sts-test-00001", "split": "test", "label": 0.25, "first": "Shares fell.", "second": "A dog runs."},
    ]


def test_the_form_of_glue_is_read_by_its_header(tmp_path):
    done = import_stsb(folder(tmp_path, {"train.tsv": GLUE}), tmp_path / "stsb.parquet")
    (row,) = pq.read_table(done.path).to_pylist()
    assert (row["first"], row["second"], row["label"], row["split"]) == ("A man plays.", "A person plays.", 3.8, "train")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds none of"),
        ({"train.tsv": GLUE.replace("score", "mark")}, "no column score"),
        ({"sts-train.csv": "a\tb\tc\td\tfive\tx\ty\n"}, "line 1: the score 'five' is no number"),
        ({"sts-train.csv": "a\tb\tc\td\t5.5\tx\ty\n"}, "line 1: a score is between 0 and 5"),
        ({"sts-train.csv": "a\tb\tc\td\t5.0\tx\n"}, "line 1: 6 columns are too few"),
    ],
)
def test_what_is_no_such_benchmark_is_refused(files, told, tmp_path):
    with pytest.raises(NotImportable, match=told):
        import_stsb(folder(tmp_path, files), tmp_path / "stsb.parquet")


def test_the_command_prints_what_to_register_it_with(tmp_path):
    target = tmp_path / "stsb.parquet"
    printed = CliRunner().invoke(app, ["stsb", str(folder(tmp_path, OWN)), str(target)])
    assert json.loads(printed.stdout) == {
        "path": str(target), "records": 2, "adapter": "text_pair", "adapter_params": {"target": "number", "max_length": 32}
    }  # fmt: skip


def test_written_pairs_are_what_the_adapter_reads(tmp_path):
    from services.jobs.records import inspect
    from services.learning.datasets.text_pair import TextPair

    done = import_stsb(folder(tmp_path, OWN), tmp_path / "stsb.parquet")
    found = inspect(done.path, label_column="label", numbers=True)
    table = pq.read_table(done.path)
    x, y = TextPair(TextPair.Parameters.model_validate(done.adapter_params)).decode(
        {name: table.column(name).to_numpy() for name in ("first", "second", "label")}
    )
    assert found["record_ids"] == ["sts-train-00001", "sts-test-00001"]
    assert (tuple(x.shape), y.tolist()) == ((2, 64), [5.0, 0.25])
