# Copyright 2026 The t5_experimental authors. Licensed under the Apache License, Version 2.0.
"""The model classes of the four families. They differ only in the defaults of their configuration, so each class only
sets `config_class`. `GenerationMixin` is named once more in each: transformers looks for it there, and would otherwise
load remote code as a class of its own, which does not pickle."""

from transformers import (
    GenerationMixin,
    PreTrainedModel,  # noqa: F401 - diffusers looks for it beside the class of a pipeline's part
)

from .classification_t5_experimental import (
    T5ExperimentalForQuestionAnswering,
    T5ExperimentalForSequenceClassification,
    T5ExperimentalForTokenClassification,
)
from .configuration_t5_experimental import (
    AUTO_CLASSES,
    CONFIG_CLASSES,
    T5ExperimentalConfig,
    T5FirstLayersNarrowConfig,
    T5LMAdaptedConfig,
    T5TalkingHeadsConfig,
    T5V11Config,
    model_class_name,
)
from .seq2seq_t5_experimental import (
    T5ExperimentalEncoderModel,
    T5ExperimentalForConditionalGeneration,
    T5ExperimentalModel,
)
from .stack_t5_experimental import T5ExperimentalPreTrainedModel


class T5V11Model(T5ExperimentalModel):
    """t5.1.1: encoder and decoder without a head."""

    config_class = T5V11Config


class T5V11ForConditionalGeneration(T5ExperimentalForConditionalGeneration, GenerationMixin):
    """t5.1.1: encoder and decoder with a language modeling head."""

    config_class = T5V11Config


class T5V11EncoderModel(T5ExperimentalEncoderModel):
    """t5.1.1: the encoder alone."""

    config_class = T5V11Config


class T5V11ForSequenceClassification(T5ExperimentalForSequenceClassification):
    """t5.1.1: sequence classification and regression."""

    config_class = T5V11Config


class T5V11ForTokenClassification(T5ExperimentalForTokenClassification):
    """t5.1.1: token classification."""

    config_class = T5V11Config


class T5V11ForQuestionAnswering(T5ExperimentalForQuestionAnswering):
    """t5.1.1: extractive question answering."""

    config_class = T5V11Config


class T5LMAdaptedModel(T5ExperimentalModel):
    """t5.1.1.lm100k: encoder and decoder without a head."""

    config_class = T5LMAdaptedConfig


class T5LMAdaptedForConditionalGeneration(T5ExperimentalForConditionalGeneration, GenerationMixin):
    """t5.1.1.lm100k: encoder and decoder with a language modeling head."""

    config_class = T5LMAdaptedConfig


class T5LMAdaptedEncoderModel(T5ExperimentalEncoderModel):
    """t5.1.1.lm100k: the encoder alone."""

    config_class = T5LMAdaptedConfig


class T5LMAdaptedForSequenceClassification(T5ExperimentalForSequenceClassification):
    """t5.1.1.lm100k: sequence classification and regression."""

    config_class = T5LMAdaptedConfig


class T5LMAdaptedForTokenClassification(T5ExperimentalForTokenClassification):
    """t5.1.1.lm100k: token classification."""

    config_class = T5LMAdaptedConfig


class T5LMAdaptedForQuestionAnswering(T5ExperimentalForQuestionAnswering):
    """t5.1.1.lm100k: extractive question answering."""

    config_class = T5LMAdaptedConfig


class T5TalkingHeadsModel(T5ExperimentalModel):
    """t5.1.th: encoder and decoder without a head."""

    config_class = T5TalkingHeadsConfig


class T5TalkingHeadsForConditionalGeneration(T5ExperimentalForConditionalGeneration, GenerationMixin):
    """t5.1.th: encoder and decoder with a language modeling head."""

    config_class = T5TalkingHeadsConfig


class T5TalkingHeadsEncoderModel(T5ExperimentalEncoderModel):
    """t5.1.th: the encoder alone."""

    config_class = T5TalkingHeadsConfig


class T5TalkingHeadsForSequenceClassification(T5ExperimentalForSequenceClassification):
    """t5.1.th: sequence classification and regression."""

    config_class = T5TalkingHeadsConfig


class T5TalkingHeadsForTokenClassification(T5ExperimentalForTokenClassification):
    """t5.1.th: token classification."""

    config_class = T5TalkingHeadsConfig


class T5TalkingHeadsForQuestionAnswering(T5ExperimentalForQuestionAnswering):
    """t5.1.th: extractive question answering."""

    config_class = T5TalkingHeadsConfig


class T5FirstLayersNarrowModel(T5ExperimentalModel):
    """t5.1.n4w10: encoder and decoder without a head."""

    config_class = T5FirstLayersNarrowConfig


class T5FirstLayersNarrowForConditionalGeneration(T5ExperimentalForConditionalGeneration, GenerationMixin):
    """t5.1.n4w10: encoder and decoder with a language modeling head."""

    config_class = T5FirstLayersNarrowConfig


class T5FirstLayersNarrowEncoderModel(T5ExperimentalEncoderModel):
    """t5.1.n4w10: the encoder alone."""

    config_class = T5FirstLayersNarrowConfig


class T5FirstLayersNarrowForSequenceClassification(T5ExperimentalForSequenceClassification):
    """t5.1.n4w10: sequence classification and regression."""

    config_class = T5FirstLayersNarrowConfig


class T5FirstLayersNarrowForTokenClassification(T5ExperimentalForTokenClassification):
    """t5.1.n4w10: token classification."""

    config_class = T5FirstLayersNarrowConfig


class T5FirstLayersNarrowForQuestionAnswering(T5ExperimentalForQuestionAnswering):
    """t5.1.n4w10: extractive question answering."""

    config_class = T5FirstLayersNarrowConfig


def auto_classes() -> list[tuple[str, type[T5ExperimentalConfig], type[T5ExperimentalPreTrainedModel]]]:
    """All (name of Auto class, configuration class, model class) of the four families."""
    return [
        (auto, config_class, globals()[model_class_name(config_class, suffix)])
        for config_class in CONFIG_CLASSES
        for auto, suffix in AUTO_CLASSES.items()
    ]


__all__ = sorted({model_class.__name__ for _, _, model_class in auto_classes()})
