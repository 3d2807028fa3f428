"""Names of languages in the languages that prompts are shipped in, but for English. Imports no torch.

Written as they stand in running text: without an article, and in small letters where the language writes them so.
"""

from __future__ import annotations

_ROWS = {
    "ar": ("Arabisch", "arabe", "arabo", "árabe"),
    "be": ("Belarussisch", "biélorusse", "bielorusso", "bielorruso"),
    "bg": ("Bulgarisch", "bulgare", "bulgaro", "búlgaro"),
    "bn": ("Bengalisch", "bengali", "bengalese", "bengalí"),
    "ca": ("Katalanisch", "catalan", "catalano", "catalán"),
    "cs": ("Tschechisch", "tchèque", "ceco", "checo"),
    "cy": ("Walisisch", "gallois", "gallese", "galés"),
    "da": ("Dänisch", "danois", "danese", "danés"),
    "de": ("Deutsch", "allemand", "tedesco", "alemán"),
    "el": ("Griechisch", "grec", "greco", "griego"),
    "en": ("Englisch", "anglais", "inglese", "inglés"),
    "es": ("Spanisch", "espagnol", "spagnolo", "español"),
    "et": ("Estnisch", "estonien", "estone", "estonio"),
    "eu": ("Baskisch", "basque", "basco", "euskera"),
    "fa": ("Persisch", "persan", "persiano", "persa"),
    "fi": ("Finnisch", "finnois", "finlandese", "finés"),
    "fr": ("Französisch", "français", "francese", "francés"),
    "ga": ("Irisch", "irlandais", "irlandese", "irlandés"),
    "gl": ("Galicisch", "galicien", "galiziano", "gallego"),
    "he": ("Hebräisch", "hébreu", "ebraico", "hebreo"),
    "hi": ("Hindi", "hindi", "hindi", "hindi"),
    "hr": ("Kroatisch", "croate", "croato", "croata"),
    "hu": ("Ungarisch", "hongrois", "ungherese", "húngaro"),
    "hy": ("Armenisch", "arménien", "armeno", "armenio"),
    "id": ("Indonesisch", "indonésien", "indonesiano", "indonesio"),
    "is": ("Isländisch", "islandais", "islandese", "islandés"),
    "it": ("Italienisch", "italien", "italiano", "italiano"),
    "ja": ("Japanisch", "japonais", "giapponese", "japonés"),
    "ka": ("Georgisch", "géorgien", "georgiano", "georgiano"),
    "kk": ("Kasachisch", "kazakh", "kazako", "kazajo"),
    "ko": ("Koreanisch", "coréen", "coreano", "coreano"),
    "lt": ("Litauisch", "lituanien", "lituano", "lituano"),
    "lv": ("Lettisch", "letton", "lettone", "letón"),
    "mk": ("Mazedonisch", "macédonien", "macedone", "macedonio"),
    "mn": ("Mongolisch", "mongol", "mongolo", "mongol"),
    "ms": ("Malaiisch", "malais", "malese", "malayo"),
    "mt": ("Maltesisch", "maltais", "maltese", "maltés"),
    "nb": ("Bokmål-Norwegisch", "norvégien bokmål", "norvegese bokmål", "noruego bokmål"),
    "nl": ("Niederländisch", "néerlandais", "olandese", "neerlandés"),
    "nn": ("Nynorsk-Norwegisch", "norvégien nynorsk", "norvegese nynorsk", "noruego nynorsk"),
    "no": ("Norwegisch", "norvégien", "norvegese", "noruego"),
    "pl": ("Polnisch", "polonais", "polacco", "polaco"),
    "pt": ("Portugiesisch", "portugais", "portoghese", "portugués"),
    "ro": ("Rumänisch", "roumain", "rumeno", "rumano"),
    "ru": ("Russisch", "russe", "russo", "ruso"),
    "sk": ("Slowakisch", "slovaque", "slovacco", "eslovaco"),
    "sl": ("Slowenisch", "slovène", "sloveno", "esloveno"),
    "sq": ("Albanisch", "albanais", "albanese", "albanés"),
    "sr": ("Serbisch", "serbe", "serbo", "serbio"),
    "sv": ("Schwedisch", "suédois", "svedese", "sueco"),
    "sw": ("Swahili", "swahili", "swahili", "suajili"),
    "ta": ("Tamil", "tamoul", "tamil", "tamil"),
    "te": ("Telugu", "télougou", "telugu", "telugu"),
    "th": ("Thailändisch", "thaï", "thailandese", "tailandés"),
    "tl": ("Tagalog", "tagalog", "tagalog", "tagalo"),
    "tr": ("Türkisch", "turc", "turco", "turco"),
    "uk": ("Ukrainisch", "ukrainien", "ucraino", "ucraniano"),
    "ur": ("Urdu", "ourdou", "urdu", "urdu"),
    "uz": ("Usbekisch", "ouzbek", "uzbeko", "uzbeko"),
    "vi": ("Vietnamesisch", "vietnamien", "vietnamita", "vietnamita"),
    "yue": ("Kantonesisch", "cantonais", "cantonese", "cantonés"),
    "zh": ("Chinesisch", "chinois", "cinese", "chino"),
}

NAMES_IN = {
    language: {code: names[column] for code, names in _ROWS.items()}
    for column, language in enumerate(("de", "fr", "it", "es"))
}
"""Name by code, by the language that it is in."""
