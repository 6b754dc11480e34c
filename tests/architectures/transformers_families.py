"""The families of transformers."""

import torch

from ..tiny import image_batch, lm_batch, token_batch
from .family import LABELS, transformers_family


def classes(config, samples, length):
    """Token ids and a class."""
    return token_batch(samples, length)


def tokens(config, samples, length):
    """Token ids that are their own labels."""
    return lm_batch(samples, length)


def images(config, samples, length):
    """Images and a class."""
    pixels, labels = image_batch(samples, getattr(config, "image_size", 224))
    return {"pixel_values": pixels, "labels": labels}


def speech(config, samples, length):
    """Spectrograms, and the tokens that are said."""
    frames = 2 * config.max_source_positions
    features = torch.randn(samples, config.num_mel_bins, frames, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "labels": lm_batch(samples, length)["labels"]}


def waves(config, samples, length):
    """A second of sound, and a class."""
    return {"input_values": torch.randn(samples, 16000, generator=torch.Generator().manual_seed(0)),
            "labels": torch.arange(samples) % LABELS}  # fmt: skip


def pairs(config, samples, length):
    """Images, and texts that belong to them."""
    pixels, _ = image_batch(samples, config.vision_config.image_size)
    batch = token_batch(samples, min(length, config.text_config.max_position_embeddings))
    return {"input_ids": batch["input_ids"], "pixel_values": pixels, "return_loss": True}


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TEXT = SIZES | {"vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 0}
ENCODER = TEXT | {"num_labels": LABELS}
DECODER = TEXT | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 1}
VISION = SIZES | {"image_size": 32, "patch_size": 16}
IMAGES = VISION | {"num_labels": LABELS}
SEQ2SEQ = {"vocab_size": 40, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
           "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 32,
           "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}  # fmt: skip
T5 = {"vocab_size": 40, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "pad_token_id": 0,
      "decoder_start_token_id": 0, "eos_token_id": 1}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}


TRANSFORMERS_FAMILIES = [
    transformers_family("BERT", "BertForSequenceClassification", classes, **ENCODER),
    transformers_family("RoBERTa", "RobertaForSequenceClassification", classes, **ENCODER),
    transformers_family("XLM-RoBERTa", "XLMRobertaForTokenClassification", tokens, **ENCODER | {"num_labels": 40},
                        slow=True),
    transformers_family("DistilBERT", "DistilBertForSequenceClassification", classes, vocab_size=40, dim=32,
                        n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=32, num_labels=LABELS),
    transformers_family("DeBERTa", "DebertaForSequenceClassification", classes, **ENCODER, relative_attention=True,
                        pos_att_type=["p2c", "c2p"]),
    transformers_family("DeBERTa v2/v3", "DebertaV2ForSequenceClassification", classes, **ENCODER,
                        relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True),
    transformers_family("ELECTRA", "ElectraForSequenceClassification", classes, **ENCODER, embedding_size=16),
    transformers_family("MPNet", "MPNetForSequenceClassification", classes, **ENCODER),
    transformers_family("ALBERT", "AlbertForSequenceClassification", classes, **ENCODER, embedding_size=16),
    transformers_family("MobileBERT", "MobileBertForSequenceClassification", classes, **ENCODER, embedding_size=16,
                        true_hidden_size=16, intra_bottleneck_size=16, slow=True),
    transformers_family("SqueezeBERT", "SqueezeBertForSequenceClassification", classes, **ENCODER, embedding_size=32),
    transformers_family("ModernBERT", "ModernBertForSequenceClassification", classes, **ENCODER, bos_token_id=1,
                        eos_token_id=1, cls_token_id=1, sep_token_id=1),
    transformers_family("XLNet", "XLNetForSequenceClassification", classes, vocab_size=40, d_model=32, n_layer=2,
                        n_head=2, d_inner=48, num_labels=LABELS, pad_token_id=0, slow=True),
    transformers_family("GPT-2", "GPT2LMHeadModel", tokens, vocab_size=40, n_embd=32, n_layer=2, n_head=2,
                        n_positions=32, bos_token_id=1, eos_token_id=1),
    transformers_family("GPT-NeoX", "GPTNeoXForCausalLM", tokens, **TEXT, bos_token_id=1, eos_token_id=1, slow=True),
    transformers_family("OPT", "OPTForCausalLM", tokens, **TEXT, ffn_dim=48, word_embed_proj_dim=32, bos_token_id=1,
                        eos_token_id=1),
    transformers_family("BLOOM", "BloomForCausalLM", tokens, vocab_size=40, hidden_size=32, n_layer=2, n_head=2,
                        pad_token_id=0, bos_token_id=1, eos_token_id=1, slow=True),
    transformers_family("Falcon", "FalconForCausalLM", tokens, **TEXT, bos_token_id=1, eos_token_id=1),
    transformers_family("Llama", "LlamaForCausalLM", tokens, **DECODER),
    transformers_family("Mistral", "MistralForCausalLM", tokens, **DECODER),
    transformers_family("Qwen2", "Qwen2ForCausalLM", tokens, **DECODER),
    transformers_family("Qwen3", "Qwen3ForCausalLM", tokens, **DECODER, head_dim=16),
    transformers_family("Gemma", "GemmaForCausalLM", tokens, **DECODER, head_dim=16, slow=True),
    transformers_family("Gemma 2", "Gemma2ForCausalLM", tokens, **DECODER, head_dim=16, slow=True),
    transformers_family("Gemma 3", "Gemma3ForCausalLM", tokens, **DECODER, head_dim=16),
    transformers_family("Phi", "PhiForCausalLM", tokens, **DECODER),
    transformers_family("Phi-3", "Phi3ForCausalLM", tokens, **DECODER, slow=True),
    transformers_family("SmolLM3", "SmolLM3ForCausalLM", tokens, **DECODER),
    transformers_family("OLMo 2", "Olmo2ForCausalLM", tokens, **DECODER, slow=True),
    transformers_family("Granite", "GraniteForCausalLM", tokens, **DECODER, slow=True),
    transformers_family("Mamba", "MambaForCausalLM", tokens, vocab_size=40, hidden_size=32, num_hidden_layers=2,
                        state_size=4, pad_token_id=0, bos_token_id=1, eos_token_id=1, slow=True),
    transformers_family("Mixtral", "MixtralForCausalLM", tokens, **DECODER, num_local_experts=4,
                        experts_implementation="eager"),
    transformers_family("Qwen2-MoE", "Qwen2MoeForCausalLM", tokens, **DECODER, **EXPERTS,
                        shared_expert_intermediate_size=24, experts_implementation="eager"),
    transformers_family("Qwen3-MoE", "Qwen3MoeForCausalLM", tokens, **DECODER, **EXPERTS, head_dim=16,
                        dtype=torch.float32),
    transformers_family("GPT-OSS", "GptOssForCausalLM", tokens, **DECODER, num_local_experts=4, head_dim=16,
                        experts_implementation="eager"),
    transformers_family("T5", "T5ForConditionalGeneration", tokens, **T5),
    transformers_family("mT5", "MT5ForConditionalGeneration", tokens, **T5, slow=True),
    transformers_family("Switch Transformers", "SwitchTransformersForConditionalGeneration", tokens, **T5,
                        router_jitter_noise=0.0, dtype=torch.float32,
                        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=4),
    transformers_family("BART", "BartForConditionalGeneration", tokens, **SEQ2SEQ),
    transformers_family("Pegasus", "PegasusForConditionalGeneration", tokens, **SEQ2SEQ, slow=True),
    transformers_family("Whisper", "WhisperForConditionalGeneration", speech,
                        **{k: v for k, v in SEQ2SEQ.items() if k != "max_position_embeddings"}, num_mel_bins=8,
                        max_source_positions=8, max_target_positions=32),
    transformers_family("wav2vec 2.0", "Wav2Vec2ForSequenceClassification", waves, **SIZES, num_labels=LABELS,
                        apply_spec_augment=False,
                        conv_dim=(8, 8, 8, 8, 8, 8, 8), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
                        classifier_proj_size=16),
    transformers_family("ViT", "ViTForImageClassification", images, **IMAGES),
    transformers_family("DeiT", "DeiTForImageClassification", images, **IMAGES, slow=True),
    transformers_family("DINOv2", "Dinov2ForImageClassification", images, **IMAGES),
    transformers_family("Swin", "SwinForImageClassification", images, image_size=32, patch_size=4, window_size=4,
                        embed_dim=16, depths=[1, 1], num_heads=[1, 2], num_labels=LABELS),
    transformers_family("ConvNeXt", "ConvNextForImageClassification", images, image_size=32, depths=[1, 1, 1, 1],
                        hidden_sizes=[8, 8, 16, 16], num_labels=LABELS),
    transformers_family("ResNet", "ResNetForImageClassification", images, image_size=32, depths=[1, 1, 1, 1],
                        hidden_sizes=[16, 16, 32, 32], embedding_size=8, num_labels=LABELS),
    transformers_family("SegFormer", "SegformerForImageClassification", images, image_size=64, depths=[1, 1, 1, 1],
                        hidden_sizes=[8, 16, 20, 32], num_labels=LABELS, slow=True),
    transformers_family("CLIP", "CLIPModel", pairs, text_config=TEXT | {"eos_token_id": 39, "projection_dim": 16},
                        vision_config=VISION | {"projection_dim": 16}, projection_dim=16),
    transformers_family("SigLIP", "SiglipModel", pairs, text_config=TEXT, vision_config=VISION),
]  # fmt: skip
