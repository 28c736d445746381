"""States of a causal language model on disk, and one sentence for each directory that has none."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from llm.models import load_model, tiny_directory
from llm.states import ROWS, STEPS, model_states, sampled_tokens


@pytest.fixture
def model(tmp_path):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_directory(), tmp_path / "model")


def change_config(model, **values):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | values))


def change_weights(model, change):
    file = model / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_the_states_are_the_models_own_logits_at_tokens_it_sampled():
    logits, change, advantage = model_states(tiny_directory())
    lm = load_model("tiny")
    assert logits.shape == (ROWS * STEPS, lm.model.config.vocab_size)
    assert logits.dtype == torch.float64 and change is None and advantage is None
    tokens = sampled_tokens(lm.model, logits.shape[1], 0, tiny_directory())
    with torch.no_grad():
        read = lm.model(tokens, use_cache=False).logits
    # float64 holds float32 logits exactly
    assert torch.equal(logits, read.double().flatten(0, 1))
    # every token after the first is possible under the state before it
    following = torch.softmax(logits.view(ROWS, STEPS, -1), -1)[:, :-1].gather(-1, tokens[:, 1:, None])
    assert (following > 0).all()


def test_the_same_seed_gives_the_same_states_and_another_seed_others():
    one, again, other = (model_states(tiny_directory(), seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_another_architecture_works(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=37, n_embd=8, n_layer=1, n_head=2, n_positions=16)).save_pretrained(
            tmp_path
        )
    assert model_states(tmp_path)[0].shape == (ROWS * STEPS, 37)


def refused(directory, *words):
    with pytest.raises(ValueError) as error:
        model_states(directory)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


def test_no_directory(tmp_path):
    refused(tmp_path / "nothing", "no model directory", "nothing")


def test_no_config(model):
    (model / "config.json").unlink()
    refused(model, "no config.json")


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_config_that_is_no_object(model, text):
    (model / "config.json").write_text(text)
    refused(model, "config.json", "JSON object")


@pytest.mark.parametrize("size", [None, 1, "98"])
def test_a_config_without_a_vocabulary(model, size):
    change_config(model, vocab_size=size)
    refused(model, "vocab_size")


def test_no_weights(model):
    (model / "model.safetensors").unlink()
    refused(model, "*.safetensors")


def test_weights_that_are_no_weights(model):
    (model / "model.safetensors").write_bytes(b"not a safetensors file")
    refused(model, "model.safetensors", "cannot be read")


def test_a_vocabulary_that_is_not_the_heads_width(model):
    width = load_model("tiny").model.config.vocab_size
    change_config(model, vocab_size=width + 5)
    refused(model, width + 5, width)


def test_a_tokenizer_that_is_wider_than_the_head(model):
    width = load_model("tiny").model.config.vocab_size
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["one too many"] = width + 6
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(model, width + 7, width, "tokenizer")


def test_a_tokenizer_that_cannot_be_read(model):
    (model / "tokenizer.json").write_text("{}")
    refused(model, "tokenizer.json", "cannot be read")


def test_a_missing_weight(model):
    change_weights(model, lambda weights: weights.pop("model.norm.weight"))
    refused(model, "model.norm.weight")


def test_an_unknown_architecture(model):
    change_config(model, model_type="no such thing", architectures=["NoSuchThing"])
    refused(model, "could not be loaded")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_policy(model, value):
    def poison(weights):
        weights["model.norm.weight"][:] = value

    change_weights(model, poison)
    refused(model, "state 0, action", "finite or -inf")
