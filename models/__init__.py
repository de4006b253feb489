"""The model: encoder, projection, decoder with cache, generation, weight files."""

from models.config import ModelConfig
from models.pix2seq import Pix2Seq, build_model
from models.weights import load_model, save_model

__all__ = ["ModelConfig", "Pix2Seq", "build_model", "load_model", "save_model"]
