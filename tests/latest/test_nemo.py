"""The door of NeMo, against the classes of nemo_toolkit 3."""

import pytest
import torch
from merged_tokens import BPE, MERGED
from nemo.collections.audio.parts.submodules.flow import (
    ConditionalFlowMatchingEulerSampler,
    OptimalTransportFlow,
)
from nemo.collections.common.tokenizers.tokenizer_spec import TokenizerSpec

from megatron_music.hosts.nemo import MusicTokenizerSpec, as_nemo_vector_field
from megatron_music.tokens import vocabulary
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder

TEXT = "PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60 TIME_DELTA=4 BAR_END TRACK_END PIECE_END DOCUMENT_END"


def test_text_tokens_and_ids_go_over_into_each_other():
    spec = MusicTokenizerSpec()
    assert isinstance(spec, TokenizerSpec)
    ids = [vocabulary.IDS[token] for token in TEXT.split()]
    assert spec.text_to_ids(TEXT) == ids and spec.ids_to_text(ids) == TEXT
    assert spec.text_to_tokens(TEXT) == TEXT.split() and spec.tokens_to_text(TEXT.split()) == TEXT
    assert spec.tokens_to_ids(TEXT.split()) == ids and spec.ids_to_tokens(ids) == TEXT.split()
    with pytest.raises(ValueError, match="'NOTE_ON=128' is no token"):
        spec.tokens_to_ids(["NOTE_ON=128"])


def test_nemo_and_megatron_find_the_special_ids():
    spec = MusicTokenizerSpec()
    assert (spec.bos, spec.eos, spec.eod, spec.pad) == (vocabulary.PIECE_START, 767, 767, vocabulary.PAD)
    assert (spec.bos_id, spec.eos_id, spec.pad_id, spec.vocab_size, len(spec.vocab)) == (1, 767, 0, 768, 768)
    assert spec.unique_identifiers["vocabulary_hash"] == vocabulary.HASH


def test_merged_tokens_are_tokens(tmp_path):
    write_tokenizer_folder(tmp_path, MERGED, BPE)
    spec = MusicTokenizerSpec(tmp_path)
    text = "BAR_START NOTE_ON=60 TIME_DELTA=4 BAR_END"
    assert spec.text_to_tokens(text) == ["BAR_START", "NOTE_ON=60+TIME_DELTA=4", "BAR_END"]
    assert spec.tokens_to_ids(spec.text_to_tokens(text)) == spec.text_to_ids(text)
    assert spec.tokens_to_text(spec.text_to_tokens(text)) == text


def test_nemos_path_is_ours_the_other_way_round():
    flow = OptimalTransportFlow(sigma_start=0.0, sigma_end=0.0)
    data, noise = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.6, 0.9]).view(3, 1, 1)
    ours = (1 - sigma) * data + sigma * noise  # sigma = 0 is data
    torch.testing.assert_close(flow.mean(x_start=noise, x_end=data, time=1 - sigma), ours)
    field = flow.vector_field(x_start=noise, x_end=data, time=1 - sigma.flatten(), point=ours)
    estimator = as_nemo_vector_field(lambda noisy, sigma: noise - data)
    torch.testing.assert_close(estimator(input=ours, condition=1 - sigma.flatten())[0], field)


def test_nemos_sampler_follows_our_velocity_from_noise_to_data():
    data, noise = torch.randn(2, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    seen = []

    def velocity(noisy, sigma):
        """Exact for one point of data: what leads from it to where one stands, over sigma."""
        seen.append(float(sigma[0]))
        return (noisy - data) / sigma.view(-1, 1, 1)

    sampler = ConditionalFlowMatchingEulerSampler(estimator=as_nemo_vector_field(velocity), num_steps=8)
    found, _ = sampler(state=noise, estimator_condition=None, state_length=None)
    torch.testing.assert_close(found, data, atol=1e-5, rtol=1e-5)
    assert seen[0] == pytest.approx(1) and seen == sorted(seen, reverse=True)  # from noise to data
