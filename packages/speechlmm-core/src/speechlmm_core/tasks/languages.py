"""Names of languages by their codes (ISO 639-1, -2 and -3, as BCP 47 uses them). Imports no torch."""

from __future__ import annotations

from difflib import get_close_matches

from speechlmm_core.tasks.language_names import NAMES_IN

NAMES = {
    "af": "Afrikaans",
    "am": "Amharic",
    "ar": "Arabic",
    "as": "Assamese",
    "ast": "Asturian",
    "az": "Azerbaijani",
    "ba": "Bashkir",
    "be": "Belarusian",
    "bg": "Bulgarian",
    "bn": "Bengali",
    "bo": "Tibetan",
    "br": "Breton",
    "bs": "Bosnian",
    "ca": "Catalan",
    "ceb": "Cebuano",
    "ckb": "Central Kurdish",
    "cs": "Czech",
    "cv": "Chuvash",
    "cy": "Welsh",
    "da": "Danish",
    "de": "German",
    "dv": "Dhivehi",
    "el": "Greek",
    "en": "English",
    "eo": "Esperanto",
    "es": "Spanish",
    "et": "Estonian",
    "eu": "Basque",
    "fa": "Persian",
    "ff": "Fula",
    "fi": "Finnish",
    "fil": "Filipino",
    "fo": "Faroese",
    "fr": "French",
    "ga": "Irish",
    "gl": "Galician",
    "gu": "Gujarati",
    "ha": "Hausa",
    "haw": "Hawaiian",
    "he": "Hebrew",
    "hi": "Hindi",
    "hr": "Croatian",
    "ht": "Haitian Creole",
    "hu": "Hungarian",
    "hy": "Armenian",
    "ia": "Interlingua",
    "id": "Indonesian",
    "ig": "Igbo",
    "is": "Icelandic",
    "it": "Italian",
    "ja": "Japanese",
    "jv": "Javanese",
    "ka": "Georgian",
    "kab": "Kabyle",
    "kam": "Kamba",
    "kea": "Cape Verdean Creole",
    "kk": "Kazakh",
    "km": "Khmer",
    "kn": "Kannada",
    "ko": "Korean",
    "ku": "Kurdish",
    "ky": "Kyrgyz",
    "la": "Latin",
    "lb": "Luxembourgish",
    "lg": "Ganda",
    "ln": "Lingala",
    "lo": "Lao",
    "lt": "Lithuanian",
    "luo": "Luo",
    "lv": "Latvian",
    "mg": "Malagasy",
    "mi": "Maori",
    "mk": "Macedonian",
    "ml": "Malayalam",
    "mn": "Mongolian",
    "mr": "Marathi",
    "ms": "Malay",
    "mt": "Maltese",
    "my": "Burmese",
    "nb": "Norwegian Bokmål",
    "ne": "Nepali",
    "nl": "Dutch",
    "nn": "Norwegian Nynorsk",
    "no": "Norwegian",
    "nso": "Northern Sotho",
    "ny": "Nyanja",
    "oc": "Occitan",
    "om": "Oromo",
    "or": "Odia",
    "pa": "Punjabi",
    "pl": "Polish",
    "ps": "Pashto",
    "pt": "Portuguese",
    "rm": "Romansh",
    "ro": "Romanian",
    "ru": "Russian",
    "rw": "Kinyarwanda",
    "sa": "Sanskrit",
    "sd": "Sindhi",
    "si": "Sinhala",
    "sk": "Slovak",
    "sl": "Slovenian",
    "sn": "Shona",
    "so": "Somali",
    "sq": "Albanian",
    "sr": "Serbian",
    "su": "Sundanese",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "tg": "Tajik",
    "th": "Thai",
    "ti": "Tigrinya",
    "tk": "Turkmen",
    "tl": "Tagalog",
    "tr": "Turkish",
    "tt": "Tatar",
    "ug": "Uyghur",
    "uk": "Ukrainian",
    "umb": "Umbundu",
    "ur": "Urdu",
    "uz": "Uzbek",
    "vi": "Vietnamese",
    "wo": "Wolof",
    "xh": "Xhosa",
    "yi": "Yiddish",
    "yo": "Yoruba",
    "yue": "Cantonese",
    "zh": "Chinese",
    "zu": "Zulu",
}

_PAIRS = """
afr=af alb=sq als=sq amh=am ara=ar arb=ar arm=hy asm=as aze=az azj=az bak=ba baq=eu bel=be ben=bn bod=bo bos=bs
bre=br bul=bg bur=my cat=ca ces=cs chi=zh chv=cv cmn=zh cym=cy cze=cs dan=da deu=de div=dv dut=nl ekk=et ell=el
eng=en epo=eo est=et eus=eu fao=fo fas=fa fin=fi fra=fr fre=fr ful=ff gaz=om geo=ka ger=de gle=ga glg=gl gre=el
guj=gu hat=ht hau=ha heb=he hin=hi hrv=hr hun=hu hye=hy ibo=ig ice=is ina=ia ind=id isl=is ita=it jav=jv jpn=ja
kan=kn kat=ka kaz=kk khk=mn khm=km kin=rw kir=ky kmr=ku kor=ko kur=ku lao=lo lat=la lav=lv lin=ln lit=lt ltz=lb
lug=lg lvs=lv mac=mk mal=ml mao=mi mar=mr may=ms mkd=mk mlg=mg mlt=mt mon=mn mri=mi msa=ms mya=my nep=ne nld=nl
nno=nn nob=nb nor=no npi=ne nya=ny oci=oc ori=or orm=om ory=or pan=pa pbt=ps per=fa pes=fa plt=mg pol=pl por=pt
pus=ps roh=rm ron=ro rum=ro rus=ru san=sa sin=si slk=sk slo=sk slv=sl sna=sn snd=sd som=so spa=es sqi=sq srp=sr
sun=su swa=sw swe=sv swh=sw tam=ta tat=tt tel=te tgk=tg tgl=tl tha=th tib=bo tir=ti tuk=tk tur=tr uig=ug ukr=uk
urd=ur uzb=uz uzn=uz vie=vi wel=cy wol=wo xho=xh ydd=yi yid=yi yor=yo zho=zh zsm=ms zul=zu
"""
_THREE_LETTERS = {pair[:3]: pair[4:] for pair in _PAIRS.split()}
"""Codes of three letters, of the language or of the one that is meant by its name; of ISO 639-2, both forms."""


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
