"""The excerpts in the package: small, and each set named with its source and licence."""

from bloomlab.experiments.task_files import EXCERPTS

LICENCES = {
    "blimp": "CC BY 4.0",
    "function_vectors": "MIT",
    "ud_pud": "CC BY-SA 3.0",
    "xcopa": "CC BY 4.0",
    "xquad": "CC BY-SA 4.0",
}


def test_excerpts_are_small_and_every_set_has_a_licence():
    files = [file for file in EXCERPTS.rglob("*") if file.is_file()]
    # every install carries them; XQuAD, texts in three languages, is some 120 kB of it
    assert sum(file.stat().st_size for file in files) < 550_000
    folders = {file.name for file in EXCERPTS.iterdir() if file.is_dir()}
    assert folders == set(LICENCES)
    lines = (EXCERPTS / "README.md").read_text("utf-8").splitlines()
    for folder, licence in LICENCES.items():
        (line,) = [line for line in lines if line.startswith(f"| `{folder}/`")]
        assert licence in line
        assert "https://github.com/" in line
