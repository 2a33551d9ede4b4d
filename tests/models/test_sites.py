"""Sites: names as TransformerLens writes them, shorthand, order, and errors that list what there is."""

import pytest

from models.llava import Llava
from models.sites import Site, all_sites, depth, parse_sites


@pytest.mark.parametrize(
    ("site", "name"),
    [
        (Site("language_model", 12, "resid_post"), "blocks.12.hook_resid_post"),
        (Site("language_model", 0, "z"), "blocks.0.attn.hook_z"),
        (Site("language_model", 3, "pattern"), "blocks.3.attn.hook_pattern"),
        (Site("vision_tower", 3, "resid_pre"), "vision_encoder.encoder_layers.3.hook_resid_pre"),
        (Site("vision_tower", 3, "q"), "vision_encoder.encoder_layers.3.attn.hook_q"),
        (Site("projector", None, "out"), "vision_projector.hook_out"),
        (Site("projector", None, "linear_1"), "vision_projector.linear_1"),
        (Site("language_model", None, "final_norm"), "ln_final.hook_out"),
    ],
)
def test_a_site_is_written_as_transformer_lens_writes_it(site: Site, name: str) -> None:
    assert str(site) == name
    assert Site.parse(name) == site


def test_every_site_of_a_model_survives_writing_and_reading(llava: Llava) -> None:
    sites = all_sites(llava)
    assert [Site.parse(str(site)) for site in sites] == sites
    assert len(set(sites)) == len(sites) == 10 * (llava.n_layers + llava.n_vision_layers) + 4 + 1
    assert sorted(sites, key=str) != sites == sorted(sorted(sites, key=str))


def test_shorthand_means_every_layer_or_the_ones_named(llava: Llava) -> None:
    def layers(specs: list[str], chosen: str | None) -> list[tuple[str, int | None]]:
        return [(site.part, site.layer) for site in parse_sites(specs, chosen, llava)]

    assert layers(["resid_post"], None) == [("language_model", layer) for layer in range(3)]
    assert layers(["resid_post"], "0,2") == [("language_model", 0), ("language_model", 2)]
    assert layers(["resid_post"], "1-2") == [("language_model", 1), ("language_model", 2)]
    assert layers(["vision:resid_post"], "1-2") == [("vision_tower", 1), ("vision_tower", 2)]
    assert layers(["resid_post@1", "vision:z@0-1"], None) == [
        ("vision_tower", 0), ("vision_tower", 1), ("language_model", 1)
    ]  # fmt: skip


def test_layers_speak_of_the_language_model_where_both_towers_are_named(llava: Llava) -> None:
    sites = parse_sites(["vision:resid_post", "projector:out", "resid_post"], "2", llava)
    assert [str(site) for site in sites] == [
        *(f"vision_encoder.encoder_layers.{layer}.hook_resid_post" for layer in range(3)),
        "vision_projector.hook_out",
        "blocks.2.hook_resid_post",
    ]


def test_a_site_named_twice_is_taken_once_and_all_means_all(llava: Llava) -> None:
    assert len(parse_sites(["resid_post", "blocks.1.hook_resid_post"], None, llava)) == 3
    assert parse_sites(["vision:all", "projector:all", "language:all"], None, llava) == all_sites(llava)


@pytest.mark.parametrize(
    ("specs", "layers", "message"),
    [
        (["resid_pots"], None, r"got 'resid_pots'. It has: resid_pre, q, k, v"),
        (["blocks.9.hook_resid_post"], None, r"layer must be in \[0, 3\) for the language model .* got 9"),
        (["vision:resid_post@7"], None, r"layer must be in \[0, 3\) for the vision tower .* got 7"),
        (["resid_post"], "0-31", r"layer must be in \[0, 3\) for the language model .*got 31"),
        (["resid_post"], "3-", r"layers must be like 0-31 or 3,5,9, got '3-'"),
        (["resid_post"], "2-1", r"layers must ascend .* Write 1-2"),
        (["projector:resid_post"], None, r"the projector has.*It has: in, linear_1, act, out"),
        (["head:out"], None, r"must start with vision:, projector: or language:"),
        (["blocks.1.hook_nothing"], None, r"must be a TransformerLens name, got 'blocks.1.hook_nothing'"),
        (["projector:out"], "0-1", r"layers must go with a site that is named without its layer"),
        (["projector:out@1"], None, r"must not name layers outside the blocks"),
        ([], None, r"site must be given at least once"),
    ],
)
def test_a_wrong_spec_is_refused_with_what_there_is(
    llava: Llava, specs: list[str], layers: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_sites(specs, layers, llava)


def test_a_site_that_no_model_has_cannot_be_made() -> None:
    with pytest.raises(ValueError, match=r"site must be one that a LLaVA has.*'resid_post'"):
        Site("projector", None, "resid_post")
    with pytest.raises(ValueError, match="layer -1"):
        Site("language_model", -1, "resid_post")


def test_depth_runs_from_the_parts_input_to_its_output(llava: Llava) -> None:
    assert depth(Site("language_model", 0, "resid_pre"), llava) == 0
    assert depth(Site("language_model", 2, "resid_post"), llava) == 1
    assert depth(Site("language_model", None, "final_norm"), llava) == 1
    assert depth(Site("vision_tower", 1, "resid_mid"), llava) == 0.5
    assert depth(Site("projector", None, "in"), llava) == 0
    for part in ("vision_tower", "projector", "language_model"):
        depths = [depth(site, llava) for site in all_sites(llava) if site.part == part]
        assert depths == sorted(depths)
