"""What must be true of a run's folder at any moment."""

import json

from qa_hpo.paths import RunPaths

__all__ = ["check_whole"]

STATE = {
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin"),
    *("epochs.json", "passes.json"),
}


def check_whole(paths: RunPaths) -> None:
    """What is there under a name that is picked up must be whole."""
    states = paths.resume_states()
    for state in states:
        assert {path.name for path in state.iterdir()} == STATE
        assert len(json.loads((state / "epochs.json").read_text())) == int(state.name[-4:])
    for checkpoint in paths.checkpoints():
        assert (checkpoint / "model.safetensors").is_file()
        assert (checkpoint / "tokenizer.json").is_file()
    if states:
        records = json.loads((states[-1] / "epochs.json").read_text())
        best = max(records, key=lambda record: (record["best_f1"], -record["epoch"]))
        assert paths.checkpoint(best["epoch"]) in paths.checkpoints()
