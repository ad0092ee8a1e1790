"""Where examples come from: image-text and video-text sets, composed scenes, sentence pairs, pretrained backbones."""
