"""Text as the sounds it is made of: espeak-ng's phonemes by the library phonemizer, spelt in IPA, as UTF-8 bytes.

For models that only read text and speak. What was written cannot be told from how it sounds, so that `decode` gives
phonemes: a model that writes text needs another tokenizer. Letters of other scripts are spelt by their names, which
espeak-ng does not always say alike.
"""

import hashlib
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

from latentlm.tokenizers.text.base import refuse_surrogates
from latentlm.tokenizers.text.bytes import ByteTokenizer
from latentlm.tokenizers.text.stored import check_fingerprint, read_config, read_setting, write_config

_log = logging.getLogger(__name__)
_quiet = _log.getChild("phonemizer")
# It warns wherever words run into each other, as in "for a".
_quiet.setLevel(logging.ERROR)


class PhonemeTokenizer(ByteTokenizer):
    """Ids of phonemes: stress marks and punctuation stay, so that sentences keep their melody.

    Args:
        language: As espeak-ng calls it: en-us, en-gb, de, fr-fr.

    Raises:
        ImportError: If phonemizer is missing; the message names the extra.
        ValueError: If espeak-ng is missing, or does not know the language.
    """

    kind = "phonemes"

    def __init__(self, language: str = "en-us") -> None:
        self.language = language
        _backend(language)  # refuses now, not when a text is read

    def phonemes(self, text: str) -> str:
        """How a text sounds, in IPA.

        Raises:
            ValueError: If the text holds a lone surrogate.
        """
        refuse_surrogates(text)
        # One utterance a line is all that the library knows; a NUL would end the text inside espeak-ng.
        line = " ".join(text.replace("\0", " ").split())
        return "".join(_backend(self.language).phonemize([line], strip=True)) if line else ""

    def encode(self, text: str) -> list[int]:
        """The bytes of a text's phonemes, without an end mark.

        Raises:
            ValueError: If the text holds a lone surrogate.
        """
        return super().encode(self.phonemes(text))

    def fingerprint(self) -> str:
        """By language. Another version of espeak-ng says a few words otherwise and does not count as another."""
        return hashlib.sha256(
            f"utf-8 bytes of espeak-ng phonemes, {self.language}, end-of-text 256".encode()
        ).hexdigest()

    def write_files(self, folder: Path) -> None:
        """Write config.json: the language, and the version of espeak-ng, for the record."""
        write_config(
            folder,
            kind=self.kind,
            fingerprint=self.fingerprint(),
            language=self.language,
            espeak=_version(self.language),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "PhonemeTokenizer":
        """Read what `write_files` wrote.

        Raises:
            ValueError: In a sentence, if the folder holds another kind, a newer format or a damaged file.
            ImportError: If phonemizer is missing; the message names the extra.
        """
        config = read_config(folder, kind=cls.kind)
        tokenizer = cls(read_setting(config, "language", str, folder))
        check_fingerprint(tokenizer.fingerprint(), config, folder)
        if config.get("espeak") != (version := _version(tokenizer.language)):
            _log.warning(
                "trained with espeak-ng %s, here is %s: some words may sound otherwise", config.get("espeak"), version
            )
        return tokenizer


@lru_cache
def _backend(language: str) -> Any:
    try:
        from phonemizer.backend import EspeakBackend
    except ImportError as error:
        raise ImportError("phonemes need the library phonemizer: pip install 'latentlm[phonemes]'") from error
    try:
        return EspeakBackend(
            language,
            preserve_punctuation=True,
            with_stress=True,
            language_switch="remove-flags",
            logger=_quiet,
        )
    except RuntimeError as error:  # the library's own class for a missing program and for a language alike
        raise ValueError(
            f"phonemes of {language!r} cannot be had: {error}. espeak-ng is a package of Debian and Ubuntu (apt-get "
            "install espeak-ng); its languages: espeak-ng --voices"
        ) from error


def _version(language: str) -> str:
    return ".".join(map(str, _backend(language).version()))
