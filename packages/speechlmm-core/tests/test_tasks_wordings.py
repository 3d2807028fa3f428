"""The lists of wordings that are shipped, and the names of languages in them."""

import re
from collections import Counter
from importlib import resources

import pytest
import yaml

from speechlmm_core.data.example import Example
from speechlmm_core.errors import ConfigError
from speechlmm_core.interfaces.task import get_task
from speechlmm_core.tasks.language_names import NAMES_IN
from speechlmm_core.tasks.languages import NAMES, language_code, language_name
from speechlmm_core.tasks.names import task_name

LANGUAGES = ("en", "de", "fr", "it", "es")
FIELDS = {
    "asr": (),
    "st": ("source_language", "target_language"),
    "mt": ("source_language", "target_language", "text"),
    "slu": (),
    "slu_intent": (),
    "sqa": ("question",),
    "ssum": (),
    "tsum": ("text",),
    "vsr": (),
    "text_instruct": ("instruction", "text"),
}
LISTS = [(task, "prompts") for task in FIELDS] + [("sqa", "spoken_prompts")]
FIRST = {
    ("asr", "en"): "Transcribe the audio.",
    ("asr", "de"): "Transkribiere die Aufnahme.",
    ("vsr", "fr"): "Lis sur les lèvres de la personne et écris ce qu'elle dit.",
    ("ssum", "it"): "Riassumi la registrazione.",
    ("slu_intent", "es"): "¿Cuál es la intención de la petición hablada?",
}


def listed(task, folder, language):
    """The file as it stands, read without the package's reader."""
    path = resources.files("speechlmm_core.tasks").joinpath(task, folder, f"{language}.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("task", "folder"), LISTS)
def test_there_are_eight_wordings_or_more_with_their_fields(task, folder, language):
    wordings = listed(task, folder, language)
    assert len(wordings) >= 8
    assert len({" ".join(line.split()).casefold() for line in wordings}) == len(wordings)
    wanted = FIELDS[task] if folder == "prompts" else ()
    for line in wordings:
        assert line == line.strip()
        assert "  " not in line
        held = Counter(re.findall(r"\{(.*?)\}", line))
        assert held == Counter(wanted), line
        assert not re.search(r"[{}]", re.sub(r"\{\w+\}", "", line))
    config = get_task(task)
    assert (config.prompts(language) if folder == "prompts" else config.spoken_prompts(language)) == wordings
    assert FIRST.get((task, language), wordings[0]) == wordings[0]


def test_no_wording_serves_two_tasks():
    # A model could not tell which of the two is meant.
    found = Counter(
        line.casefold() for task, folder in LISTS for language in LANGUAGES for line in listed(task, folder, language)
    )
    assert [line for line, count in found.items() if count > 1] == []


@pytest.mark.parametrize("task", [task for task, fields in FIELDS.items() if not fields])
def test_no_two_languages_share_a_wording(task):
    found = Counter(line for language in LANGUAGES for line in listed(task, "prompts", language))
    assert max(found.values()) == 1


def test_tasks_without_a_question_have_no_wordings():
    for task in ("chat", "multi_turn_text_instruct", "ntp", "interleaved"):
        assert get_task(task).prompts() == []


@pytest.mark.parametrize(
    ("language", "wanted"),
    [
        ("en", ("German", "Portuguese")),
        ("de", ("Deutsch", "Portugiesisch")),
        ("fr", ("allemand", "portugais")),
        ("it", ("tedesco", "portoghese")),
        ("es", ("alemán", "portugués")),
    ],
)
@pytest.mark.parametrize("task", ["st", "mt"])
def test_languages_are_called_by_their_names_in_the_prompts_language(task, language, wanted):
    config = get_task(task, {"prompt_languages": language})
    one = Example(
        id="1",
        media={"audio": {"path": "a.wav"}},
        source_text="Zeile",
        source_language="de",
        target_language="pt-BR",
    )
    for draw in config.draws(one):
        text = config.messages(one, draw=draw, with_answer=False)[0].content[-1]["text"]
        assert all(name in text for name in wanted), text
        if task == "mt":
            assert "Zeile" in text


def test_every_language_has_a_name_in_every_prompts_language():
    assert set(NAMES_IN) == set(LANGUAGES) - {"en"}
    for language, names in NAMES_IN.items():
        assert set(names) == set(NAMES), language
        assert len(set(names.values())) == len(names), language
        assert all(name == name.strip() for name in names.values())
    # From the Unicode CLDR, spot by spot.
    assert [language_name("zh", one) for one in LANGUAGES] == ["Chinese", "Chinesisch", "chinois", "cinese", "chino"]
    assert [language_name("nl", one) for one in LANGUAGES][1:] == [
        "Niederländisch",
        "néerlandais",
        "olandese",
        "neerlandés",
    ]
    assert [language_name("ja", one) for one in LANGUAGES][1:] == ["Japanisch", "japonais", "giapponese", "japonés"]


def test_names_fall_back_to_english():
    assert language_name("de", "pl") == "German"
    assert language_name("xx", "de") is None
    assert language_code("Deutsch") is None
    assert [language_code(code) for code in ("de_CH", "deu", "german", "")] == ["de", "de", "de", None]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("ASR", "asr"),
        ("ST", "st"),
        ("MT", "mt"),
        ("SLU", "slu"),
        ("SLU_INTENT_ONLY", "slu_intent"),
        ("SQA", "sqa"),
        ("SSUM", "ssum"),
        ("TSUM", "tsum"),
        ("VSR", "vsr"),
        ("TextInstruct", "text_instruct"),
        ("MultiTurnTextInstruct", "multi_turn_text_instruct"),
        ("NTP", "ntp"),
        ("InterleavedTextAudioNTP", "interleaved"),
        ("interleaved", "interleaved"),
        ("text-instruct", "text_instruct"),
    ],
)
def test_names_of_the_first_toolkit_are_known(written, name):
    assert task_name(written) == name
    assert get_task(name).type == name


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("ASRR", "unknown task 'ASRR'; did you mean 'asr'?"),
        ("SLU_INTENT_ONLI", "did you mean 'slu_intent'?"),
        ("TTS", "task 'TTS' answers in speech"),
        ("S2ST", "answers in speech"),
        ("dance", r"unknown task 'dance' \(available: asr, "),
    ],
)
def test_names_that_are_none_are_refused(written, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        task_name(written)


@pytest.mark.parametrize("task", ["st", "mt"])
def test_german_names_of_languages_stand_where_they_need_no_ending(task):
    # "Aus dem Englischen ins Deutsche" has endings that a name in a list has not; "von Englisch nach Deutsch" is loose.
    for line in listed(task, "prompts", "de"):
        assert not re.search(r"\b(von|nach|aus dem|ins|vom|zum) \{(source|target)_language\}", line), line


FLEURS = """
    af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cmn_hans_cn cs_cz cy_gb da_dk de_de
    el_gr en_us es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in ha_ng he_il hi_in hr_hr hu_hu hy_am id_id
    ig_ng is_is it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz km_kh kn_in ko_kr ky_kg lb_lu lg_ug ln_cd lo_la lt_lt luo_ke
    lv_lv mi_nz mk_mk ml_in mn_mn mr_in ms_my mt_mt my_mm nb_no ne_np nl_nl nso_za ny_mw oc_fr om_et or_in pa_in pl_pl
    ps_af pt_br ro_ro ru_ru sd_in sk_sk sl_si sn_zw so_so sr_rs sv_se sw_ke ta_in te_in tg_tj th_th tr_tr uk_ua umb_ao
    ur_pk uz_uz vi_vn wo_sn xh_za yo_ng yue_hant_hk zu_za
"""
"""The subsets of FLEURS (Conneau et al., 2022), 102 languages."""


def test_whispers_languages_have_names():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER

    otherwise = {"my": "burmese", "nn": "norwegian nynorsk"}
    for code, name in WHISPER.items():
        if code != "jw":  # Javanese, by a code that was withdrawn
            assert (language_name(code) or "").lower() == otherwise.get(code, name)


def test_the_languages_of_fleurs_have_names():
    found = {language_code(code) for code in FLEURS.split()}
    assert len(found) == len(FLEURS.split()) == 102
    assert None not in found


def test_every_language_has_a_code_of_three_letters():
    from speechlmm_core.tasks.languages import _THREE_LETTERS as THREE  # the table is not reached otherwise

    assert all(re.fullmatch(r"[a-z]{3}", code) and code not in NAMES for code in THREE)
    assert {code for code in NAMES if len(code) == 2} == set(THREE.values())
    # Spot by spot, from ISO 639-3's own table.
    spots = {"dan": "da", "heb": "he", "hrv": "hr", "nob": "nb", "gle": "ga", "afr": "af", "swh": "sw", "khk": "mn"}
    spots |= {"als": "sq", "sqi": "sq", "slk": "sk", "slv": "sl", "mkd": "mk", "mlt": "mt", "mal": "ml", "kan": "kn"}
    assert {code: language_code(code) for code in spots} == spots
