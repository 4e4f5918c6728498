"""Study files and run configurations: what is read, what is refused, and in which words."""

from pathlib import Path

import pytest

from qa_hpo.config import Run, RunConfig, StudyFile, load_run_config, load_study_file, to_toml
from qa_hpo.demo import write_demo
from qa_hpo.errors import StudyFileError
from qa_hpo.parameters import Dimension, Parameters
from qa_hpo.search.space import SearchSpace
from qa_hpo.sections import Runtime

ROOT = Path(__file__).parents[1]
SHIPPED = [*sorted((ROOT / "studies").glob("*.toml")), ROOT / "src/qa_hpo/study_template.toml"]

STUDY = """
[study]
name = "demo"
[data]
train = "a.json"
validation = "b.json"
max_length = 128
[starts]
base = "x"
[starts.v1]
from = "base"
train = "c.json"
[search.start]
choices = ["base", "v1"]
[search.learning_rate]
low = 1e-5
high = 1e-3
log = true
[search.epochs]
low = 2
high = 5
[search.warmup]
low = 0.0
high = 0.3
when = { start = "base" }
[search]
batch_size = [8, 16]
weight_decay = 0.1
[evaluation]
doc_stride = 32
[budget]
trials = 3
[[baseline]]
name = "notebook"
start = "v1"
learning_rate = 1e-4
epochs = 3
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def study(tmp_path: Path) -> StudyFile:
    return load_study_file(write(tmp_path, STUDY))


def test_short_forms_are_choices_and_fixed_values(study: StudyFile) -> None:
    assert study.search["batch_size"].choices == [8, 16]
    assert study.search["weight_decay"].value == 0.1


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_study_files_are_valid_and_read_back_from_their_own_toml(
    path: Path, tmp_path: Path
) -> None:
    file = load_study_file(path)
    assert load_study_file(write(tmp_path, to_toml(file))) == file
    assert StudyFile.model_validate_json(file.model_dump_json(by_alias=True)) == file


def test_the_demo_study_is_what_the_demo_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_demo(Path("storage/demo"))
    written = Path("storage/demo/study.toml").read_bytes()
    assert written == (ROOT / "studies/demo.toml").read_bytes()


def test_the_notebook_study_has_the_notebooks_own_configuration_as_baseline() -> None:
    file = load_study_file(ROOT / "studies/notebook.toml")
    assert file.data.max_length == 384
    assert file.training.batch_size == 64
    assert list(file.starts) == ["base", "v1", "v2"]
    baseline = {name: value for name, value in file.baseline[0].items() if name != "name"}
    assert baseline == {
        "start": "v1",
        "learning_rate": 2e-5,
        "weight_decay": 0.01,
        "doc_stride": 128,
    }
    assert file.defaults.epochs == 3


WRONG = [
    ("trials = 3", "trails = 3", "budget.trails: unknown key; did you mean 'trials'?"),
    ("[budget]", "[budgt]", "budgt: unknown key; did you mean 'budget'?"),
    ("low = 2\n", "low = 7\n", "search.epochs: low 7 is above high 5"),
    ("low = 2\n", "low = 2.5\n", "search.epochs: input should be a valid integer, got 2.5"),
    ("high = 5\n", "", "search.epochs: high is missing"),
    ('["base", "v1"]', '["base", "v3"]', "search.start: no start is called 'v3'; valid: base, v1"),
    ('from = "base"', 'from = "bas"', "starts.v1.from: no start is called 'bas'; did you mean"),
    ('from = "base"', 'from = "v1"', "starts.v1.from: goes round: v1 from v1"),
    ('train = "c.json"', "train = 3", "starts.v1.train: input should be a valid string, got 3"),
    ("[search.epochs]", "[search.epoch]", "search.epoch: unknown parameter; did you mean 'epochs'"),
    ("[search.epochs]", "[search.foo]", "search.foo: unknown parameter; valid: learning_rate, "),
    ("epochs = 3", "epochs = 9", "baseline[0].epochs: 9 is not in search.epochs"),
    ("epochs = 3", "epoch = 3", "baseline[0].epoch: unknown parameter; did you mean 'epochs'?"),
    ("epochs = 3", "dropout = 0.1", "baseline[0].dropout: is not searched: set it in [training]"),
    ("max_length = 128", 'max_length = "1"', "data.max_length: input should be a valid integer"),
    ("doc_stride = 32", "doc_stride = 128", "evaluation.doc_stride: 128 must be below data.max_le"),
    ('name = "demo"', "", "study.name: missing"),
    ('name = "demo"', 'name = "a/b"', "study.name: string should match pattern"),
    ("trials = 3", "", "budget: give trials, epochs or hours"),
    ("trials = 3", f"trials = {'9' * 400}", "budget.trials: input should be less than 2147483648"),
    ("low = 2\n", "low = 2\nstep = 2147483648\n", "search.epochs: step must be above 0 and below"),
    ("[8, 16]", "[8, -1]", "search.batch_size: input should be greater than or equal to 1, got -1"),
    ("[8, 16]", "[8, 8]", "search.batch_size: choices has the same value twice"),
    ("weight_decay = 0.1", "weight_decay = nan", "search.weight_decay.value: input should be a fi"),
    ("low = 1e-5", "low = 0.0", "search.learning_rate: a log range needs low above 0, got 0"),
    ("{ start =", "{ strt =", "search.warmup.when.strt: not another searched parameter; did you"),
    *(
        ('{ start = "base" }', f"{{ {when} }}", f"search.warmup.when.{message}")
        for when, message in (
            ('start = "v2"', "start: 'v2' is not in search.start"),
            ("batch_size = [16, 4]", "batch_size: 4 is not in search.batch_size"),
            ('batch_size = "16"', "batch_size: input should be a valid integer, got '16'"),
            ("epochs = 1", "epochs: 1 is not in search.epochs"),
            ("epochs = []", "epochs: is empty; give the value that it must have, or several"),
            ("batch_size = true", "batch_size: input should be a valid"),
            ("weight_decay = 0.0", "weight_decay: 0.0 is not in search.weight_decay"),
        )
    ),
    ("[study]", "[study", "is not TOML: "),
    ('base = "x"', "base = 5", "starts.base: input should be a valid string, got 5"),
    *(
        ("[budget]", f"[pruning]\nevaluations_per_epoch = {value}\n[budget]", message)
        for value, message in (
            (0, "pruning.evaluations_per_epoch: input should be greater than or equal to 1, got 0"),
            (101, "pruning.evaluations_per_epoch: input should be less than or equal to 100, got "),
            (1.5, "pruning.evaluations_per_epoch: input should be a valid integer, got 1.5"),
            ('"4"', "pruning.evaluations_per_epoch: input should be a valid integer, got '4'"),
        )
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[case[2][:56] for case in WRONG])
def test_a_mistake_gives_one_line_with_its_place(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in STUDY
    path = write(tmp_path, STUDY.replace(old, new, 1))
    with pytest.raises(StudyFileError) as caught:
        load_study_file(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_condition_may_be_the_default_that_another_conditional_parameter_has_elsewhere(
    tmp_path: Path,
) -> None:
    text = STUDY.replace(
        "[search]\n", "[search]\ndropout = { value = 0.1, when = { warmup = 0.0 } }\n"
    )
    text = text.replace("low = 0.0\nhigh = 0.3", "low = 0.1\nhigh = 0.3")
    space = SearchSpace(load_study_file(write(tmp_path, text)))
    assert space.parameters_of({"start": "v1"}).dropout == 0.1
    assert space.parameters_of({"start": "base", "warmup": 0.2}).dropout is None


def test_two_mistakes_give_two_lines(tmp_path: Path) -> None:
    text = STUDY.replace("trials = 3", "trials = 0").replace("max_length = 128", "max_length = 1")
    with pytest.raises(StudyFileError) as caught:
        load_study_file(write(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"none\.toml: no such file \(looked in "):
        load_study_file(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyFileError, match="is not UTF-8 text"):
        load_study_file(binary)
    with pytest.raises(StudyFileError, match="cannot be read"):
        load_study_file(tmp_path)


def test_a_start_is_not_built_from_hundreds_of_others(tmp_path: Path) -> None:
    def chain(length: int) -> str:
        recipes = (f'[starts.s{n}]\nfrom = "s{n + 1}"\ntrain = "c.json"\n' for n in range(length))
        return STUDY.replace('base = "x"\n', f'base = "x"\ns{length} = "x"\n' + "".join(recipes), 1)

    assert len(load_study_file(write(tmp_path, chain(99))).lineage("s0")) == 100
    with pytest.raises(
        StudyFileError, match=r"starts\.s0\.from: more than 100 starts from a check"
    ):
        load_study_file(write(tmp_path, chain(100)))


def test_keys_of_thousands_of_parts_are_not_read(tmp_path: Path) -> None:
    # 478 lines of these take ten seconds to parse.
    lines = "".join(f"{'.'.join(['a'] * 1000)}.b{n} = 1\n" for n in range(60))
    with pytest.raises(StudyFileError, match="is no study file: its keys have too many parts"):
        load_study_file(write(tmp_path, lines))


def test_a_file_with_a_line_break_in_its_name_is_one_mistake(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError) as caught:
        load_study_file(tmp_path / "a\nb.toml")
    assert len(caught.value.lines) == 1


def test_a_range_of_one_number_of_epochs_is_one_horizon(tmp_path: Path) -> None:
    one = STUDY.replace("low = 2\nhigh = 5", "low = 3\nhigh = 3")
    assert load_study_file(write(tmp_path, one)).pruning.across == "promote"
    assert load_study_file(write(tmp_path, STUDY)).pruning.across == "median"


def test_a_study_file_is_not_one_runs_configuration(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="this is a study file"):
        load_run_config(write(tmp_path, STUDY))


def test_a_runs_configuration_brings_its_starts_with_recipes_spelt_out(
    study: StudyFile, tmp_path: Path
) -> None:
    parameters = study.defaults.model_copy(update={"start": "v1", "learning_rate": 1e-4})
    config = study.run_config(parameters, Run(name="a run", seed=5), Runtime(cpu_threads=2))
    assert list(config.starts) == ["v1", "base"]
    path = write(tmp_path, to_toml(config))
    assert load_run_config(path) == config
    # Nothing is left to a default that another study might have set otherwise.
    (recipe,) = (start for start in config.starts.values() if not isinstance(start, str))
    assert recipe.parameters(Parameters()) == study.defaults.model_copy(update={"start": "base"})


def test_a_runs_configuration_names_a_start_that_it_has(study: StudyFile, tmp_path: Path) -> None:
    config = study.run_config(study.defaults, Run(name="a run"), Runtime())
    text = to_toml(config).replace('start = "base"', 'start = "bse"')
    with pytest.raises(
        StudyFileError, match=r"parameters\.start: no start is called 'bse'; did you"
    ):
        load_run_config(write(tmp_path, text))
    assert isinstance(config, RunConfig)


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Dimension(low=2, high=8, step=3), [2, 5, 8], [1, 3, 4, 9]),
        (Dimension(low=0.0, high=0.3, step=0.1), [0.0, 0.1, 0.2, 0.3], [0.15, -0.1, 0.4]),
        (Dimension(low=4, high=9, step=2**30), [4], [5, 8, 9]),
        (Dimension(low=1e-5, high=3e-5, step=1e-5), [1e-5, 2e-5, 3e-5], [1.5e-5, 2.001e-5]),
        (Dimension(low=1e-5, high=1e-3, log=True), [1e-5, 1e-4, 1e-3], [9e-6, 1.1e-3]),
        (Dimension(choices=["a", "b"]), ["a", "b"], ["c"]),
        (Dimension(value=3), [3], [2]),
    ],
)
def test_a_dimension_knows_its_points(
    dimension: Dimension, inside: list[float], outside: list[float]
) -> None:
    assert all(dimension.contains(value) for value in inside)
    assert not any(dimension.contains(value) for value in outside)
