"""A small random text encoder in the files of Hugging Face."""

import torch


def hugging_face_folder(folder, kind: str, width: int = 16):
    """A tiny random encoder with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertModel,
        PreTrainedTokenizerFast,
        T5Config,
        T5EncoderModel,
    )

    names = ["<pad>", "</s>", "<unk>", "slow", "fast", "organ", "flute", "music"]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "t5":
        config = T5Config(
            vocab_size=8, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
        T5EncoderModel(config).save_pretrained(folder)
    else:
        sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        BertModel(BertConfig(vocab_size=8, **sizes)).save_pretrained(folder)
    return folder
