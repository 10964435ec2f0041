import pytest
import typer

from bloomlab import cli

PROMPT = "The government of the United"


@pytest.fixture
def pieces(monkeypatch):
    """What the command writes, piece by piece."""
    written, echo = [], typer.echo

    def recorded(text="", **options):
        written.append(text)
        echo(text, **options)

    monkeypatch.setattr(cli.typer, "echo", recorded)
    return written


def expected(model, **options):
    ids = model.generate(PROMPT, max_new_tokens=12, **options)
    return PROMPT + model.tokenizer.decode(ids[0, model.to_tokens(PROMPT).shape[1] :])


def test_the_text_is_what_the_model_generates(run, demo, pieces):
    code, out, err = run("generate", "demo", PROMPT, "--max-new-tokens", 12)
    assert (code, err) == (0, "")
    assert out == expected(demo) + "\n"
    assert sum(map(bool, pieces)) > 6  # it came bit by bit
    assert "".join(pieces) + "\n" == out


def test_samples_are_those_of_their_seed(run, demo):
    arguments = ("generate", "demo", PROMPT, "--max-new-tokens", 12, "--sample")
    options = ("--temperature", 1.5, "--top-k", 100, "--top-p", 0.95)
    _, out, _ = run(*arguments, *options, "--seed", 3)
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 100, "top_p": 0.95}
    assert out == expected(demo, **settings, seed=3) + "\n"
    assert out == run(*arguments, *options, "--seed", 3)[1]
    assert out != run(*arguments, *options, "--seed", 4)[1]


def test_it_ends_at_the_earliest_stop_text(run, demo):
    whole = expected(demo)
    words = whole.removeprefix(PROMPT).split()
    _, out, _ = run("generate", "demo", PROMPT, "--stop", words[2], "--stop", words[1])
    ended = out.removesuffix("\n")
    assert whole.startswith(ended)
    assert words[1] in ended.removeprefix(PROMPT)
    assert words[2] not in ended.removeprefix(PROMPT)


def test_nothing_printed_steers_the_terminal(run):
    _, out, _ = run("generate", "demo", "red \x1b[31m text\x9b2J\n\tgoes", "--max-new-tokens", 1)
    assert out.startswith("red [31m text2J\n\tgoes")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tmp}", "Hello"), "no config.json"),
        (("demo", "Hello", "--max-new-tokens", "0"), "max_new_tokens"),
        (("demo", "Hello", "--sample", "--top-p", "3"), "top_p"),
        (("demo", "Hello", "--sample", "--temperature", "0"), "temperature"),
        (("demo", "Hello", "--dtype", "int3"), "dtype is 'int3'"),
        (("demo", "Hello", "--device", "abacus"), "device is 'abacus'"),
        (("demo", ""), "prompt"),
    ],
)
def test_what_cannot_be_generated_is_one_clean_message(run, tmp_path, arguments, message):
    code, out, err = run("generate", *(a.format(tmp=tmp_path) for a in arguments))
    assert (code, out) == (1, "")
    assert err.startswith("bloomlab: ")
    assert message in err
    assert err.count("\n") == 1
