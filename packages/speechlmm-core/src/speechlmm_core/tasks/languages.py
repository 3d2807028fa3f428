"""Names of languages by their codes (ISO 639-1 and 639-3, as BCP 47 uses them). Imports no torch."""

from __future__ import annotations

from difflib import get_close_matches

from speechlmm_core.tasks.language_names import NAMES_IN

NAMES = {
    "ar": "Arabic",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "ca": "Catalan",
    "cs": "Czech",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "ga": "Irish",
    "gl": "Galician",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "hu": "Hungarian",
    "hy": "Armenian",
    "id": "Indonesian",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "ka": "Georgian",
    "kk": "Kazakh",
    "ko": "Korean",
    "lt": "Lithuanian",
    "lv": "Latvian",
    "mk": "Macedonian",
    "mn": "Mongolian",
    "ms": "Malay",
    "mt": "Maltese",
    "nb": "Norwegian Bokmål",
    "nl": "Dutch",
    "nn": "Norwegian Nynorsk",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sq": "Albanian",
    "sr": "Serbian",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "tl": "Tagalog",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "yue": "Cantonese",
    "zh": "Chinese",
}

_THREE_LETTERS = {
    "ara": "ar",
    "cat": "ca",
    "ces": "cs",
    "cmn": "zh",
    "cym": "cy",
    "deu": "de",
    "ell": "el",
    "eng": "en",
    "est": "et",
    "fas": "fa",
    "fin": "fi",
    "fra": "fr",
    "hin": "hi",
    "hun": "hu",
    "ind": "id",
    "ita": "it",
    "jpn": "ja",
    "kor": "ko",
    "lav": "lv",
    "lit": "lt",
    "nld": "nl",
    "pol": "pl",
    "por": "pt",
    "ron": "ro",
    "rus": "ru",
    "slv": "sl",
    "spa": "es",
    "swe": "sv",
    "tam": "ta",
    "tur": "tr",
    "ukr": "uk",
    "vie": "vi",
    "zho": "zh",
}


def language_code(code: str) -> str | None:
    """The plain code (`de`) for a code (`de`, `de-CH`, `deu`) or an English name (`german`); None if it is unknown."""
    plain = code.strip()
    base = plain.replace("_", "-").split("-", 1)[0].lower()
    base = _THREE_LETTERS.get(base, base)
    if base in NAMES:
        return base
    return next((found for found, name in NAMES.items() if name.lower() == plain.lower()), None)


def language_name(code: str, language: str = "en") -> str | None:
    """What a language is called.

    Args:
        code: Its code (`de`, `de-CH`, `deu`) or its English name (`german`).
        language: Code of the language that the name is wanted in; English where its names are not known.

    Returns:
        The name, None if the code is unknown.
    """
    found = language_code(code)
    if found is None:
        return None
    return NAMES_IN.get(language, NAMES).get(found, NAMES[found])


def unknown_language(code: str) -> str:
    """Words the complaint about a code that has no name here."""
    near = get_close_matches(code.lower(), [*NAMES, *(name.lower() for name in NAMES.values())], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown language {code!r}{hint} (expected a code like 'en' or 'pt-BR', or an English name)"
