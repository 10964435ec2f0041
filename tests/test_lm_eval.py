"""lm-eval's interface to our models: its answers by brute force, and those of its own wrapper."""

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, TokenizerError
from bloomlab.interventions import steer

pytest.importorskip("lm_eval", reason="lm-eval is an extra: bloomlab[eval]")

from lm_eval.api.instance import Instance

from bloomlab.lm_eval import BloomLM

CONTEXTS = ["The capital of France is", "Das Haus ist", "", "In 1999 the ", "Il était une fois"]
ENDINGS = [" Paris.", " London", " rot und groß", "river"]
TEXTS = ["The bridge over the river is closed.", "Wo ist der Bahnhof?", "a"]


def asked(kind, *arguments):
    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def pairs():
    return asked("loglikelihood", *((c, e) for c in CONTEXTS for e in ENDINGS))


@pytest.fixture(scope="module")
def push(demo):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(demo.cfg.d_model, generator=generator) * 0.3


def brute(model, context, ending, edits=()):
    """Log-probability of a text's end, token by token, one forward each."""
    ids = model.tokenizer.encode(context) or [model.tokenizer.bos_token_id]
    spaces = context[len(context.rstrip()) :]
    if spaces:  # they belong to the first word that follows
        ids = model.tokenizer.encode(context.rstrip())
    whole = model.tokenizer.encode(context + ending)
    rest = whole[len(ids) :] if context else whole
    total, greedy = 0.0, True
    for token in rest:
        logits = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=edits)[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        greedy &= int(logits.argmax()) == token
        ids = [*ids, token]
    return total, greedy


@pytest.mark.parametrize("steered", [False, True])
@torch.no_grad()
def test_loglikelihood_is_the_brute_force_one(demo, pairs, push, steered):
    edits = [steer(1, push)] if steered else []
    found = BloomLM(demo, interventions=edits).loglikelihood(pairs, disable_tqdm=True)
    for request, (log_prob, greedy) in zip(pairs, found, strict=True):
        expected, best = brute(demo, *request.args, edits)
        assert log_prob == pytest.approx(expected, abs=1e-3)
        assert greedy == best


@torch.no_grad()
def test_a_greedy_ending_is_said_to_be_one(demo):
    (said,) = BloomLM(demo, max_gen_toks=3).generate_until(
        asked("generate_until", ("The capital of France is", {})), disable_tqdm=True
    )
    request = asked("loglikelihood", ("The capital of France is", said))
    ((_, greedy),) = BloomLM(demo).loglikelihood(request, disable_tqdm=True)
    assert greedy


@torch.no_grad()
def test_rolling_windows_predict_every_token_once(demo):
    texts = asked("loglikelihood_rolling", *((text,) for text in TEXTS))
    bos = demo.tokenizer.bos_token_id
    found = BloomLM(demo).loglikelihood_rolling(texts, disable_tqdm=True)
    for text, log_prob in zip(TEXTS, found, strict=True):
        ids = torch.tensor([[bos, *demo.tokenizer.encode(text)]])
        logits = demo(ids, return_type="logits")[0, :-1].log_softmax(-1)
        expected = logits.gather(-1, ids[0, 1:, None]).sum()
        assert log_prob == pytest.approx(float(expected), abs=1e-3)
    short = BloomLM(demo, max_length=4).loglikelihood_rolling(texts[:1], disable_tqdm=True)
    ids, total = demo.tokenizer.encode(TEXTS[0]), 0.0
    for start in range(0, len(ids), 4):  # a window reads 4 tokens: the last one has its full length
        end = min(start + 4, len(ids))
        before = [bos, *ids][max(0, end - 4) : start + 1]
        row = torch.tensor([[*before, *ids[start:end]]])
        logits = demo(row, return_type="logits")[0].log_softmax(-1)
        total += sum(float(logits[len(before) - 1 + i, ids[start + i]]) for i in range(end - start))
    assert short[0] == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("steered", [False, True])
@torch.no_grad()
def test_generation_is_greedy_up_to_the_first_end_string(demo, push, steered):
    edits = [steer(1, push)] if steered else []
    lm = BloomLM(demo, interventions=edits)
    contexts = [context for context in CONTEXTS if context]
    options = {"until": [" ", "\n"], "max_gen_toks": 6, "temperature": 0.0}
    free = {"max_gen_toks": 6}
    requests = [(c, o) for c in contexts for o in (options, free)]
    found = lm.generate_until(asked("generate_until", *requests), disable_tqdm=True)
    for (context, given), text in zip(requests, found, strict=True):
        ids, start = demo.to_tokens(context), len(demo.to_tokens(context)[0])
        for _ in range(6):
            logits = demo.run_with_hooks(ids, fwd_hooks=edits)[:, -1]
            ids = torch.cat([ids, logits.argmax(-1)[:, None]], -1)
            if ids[0, -1] == demo.tokenizer.eos_token_id:
                break
        expected = demo.tokenizer.decode(ids[0, start:], skip_special_tokens=True)
        for end in given.get("until", []):
            expected = expected.split(end)[0]
        assert text == expected


@torch.no_grad()
def test_answers_are_those_of_lm_evals_own_wrapper(demo, pairs):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="bloomlab[eval]")
    theirs = huggingface.HFLM(
        pretrained=demo.to_hf(), tokenizer=demo.tokenizer, batch_size=4, max_length=64
    )
    ours = BloomLM(demo, max_length=64)
    answers = [lm.loglikelihood(pairs, disable_tqdm=True) for lm in (ours, theirs)]
    for (a, greedy), (b, best) in zip(*answers, strict=True):
        assert a == pytest.approx(b, abs=1e-3)
        assert greedy == best
    texts = asked("loglikelihood_rolling", *((text * 9,) for text in TEXTS))
    answers = [lm.loglikelihood_rolling(texts, disable_tqdm=True) for lm in (ours, theirs)]
    assert answers[0] == pytest.approx(answers[1], abs=1e-2)
    options = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": False}
    requests = asked("generate_until", *((context, options) for context in CONTEXTS if context))
    said = [lm.generate_until(requests, disable_tqdm=True) for lm in (ours, theirs)]
    assert said[0] == said[1]


def test_bad_requests_are_refused(demo, push):
    with pytest.raises(InputError, match="batch_size is 0"):
        BloomLM(demo, batch_size=0)
    with pytest.raises(InputError, match="leave out on_rows"):
        BloomLM(demo, interventions=[steer(0, push).on_rows(1)])
    with pytest.raises(InputError, match="at most 2 fit"):
        BloomLM(demo, max_length=2).loglikelihood(
            asked("loglikelihood", ("The", " bridge over the river is closed")), disable_tqdm=True
        )
    with pytest.raises(InputError, match="no room for the context"):
        BloomLM(demo, max_length=8).generate_until(
            asked("generate_until", ("The", {"max_gen_toks": 8})), disable_tqdm=True
        )
    bare = bl.BloomForCausalLM(demo.config)
    with pytest.raises(TokenizerError, match="tokenizer"):
        BloomLM(bare)
