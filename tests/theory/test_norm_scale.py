"""Which embeddings are small beside a norm's epsilon; the norms themselves are held to autodiff in tests/verify."""

from theory.norm_scale import epsilon_table, preset_table


def test_which_embeddings_are_within_one_and_ten_per_cent() -> None:
    table = {(e.name, e.d_model, e.epsilon): e.within for e in epsilon_table(("gpt2", "opt", "megatron", "palm"))}
    assert {e: table["gpt2", 768, e] for e in (1e-5, 1e-6)} == {1e-5: "10 %", 1e-6: "1 %"}
    assert {e: table["opt", 5120, e] for e in (1e-5, 1e-6)} == {1e-5: "beyond", 1e-6: "10 %"}
    assert [table["megatron", d, 1e-5] for d in (128, 768, 2048, 5120)] == ["1 %", "10 %", "10 %", "beyond"]
    assert table["palm", 12288, 1e-5] == "1 %"
    # the widths in the derivation's last reason
    for tolerance, width in ((0.01, 404), (0.1, 4444)):
        lost = [epsilon_table(("megatron",), (d,), (1e-5,))[0].lost_variance for d in (width, width + 1)]
        assert lost[0] <= tolerance < lost[1]
    recipes = {e.name: e for e in preset_table()}
    assert recipes["opt-175b"].within == "beyond" and recipes["llama-7b"].within == "1 %"
    assert not {"bloom-176b", "glm-130b", "olmo2-7b"} & set(recipes)  # embedding LayerNorm; no norm on what enters
