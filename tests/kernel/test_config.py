import pytest

from kernel.config import Config, ConfigError, UserQuota, is_loopback


def test_the_command_line_counts_most_then_environment_then_file(tmp_path):
    file = tmp_path / "kernel.yaml"
    file.write_text("port: 1111\nmax-num-seqs: 11\nworker: tcp://127.0.0.1:7001\nmodel: from-file\n")
    environ = {"SYMPHONY_PORT": "2222", "SYMPHONY_MODEL": "from-environment"}
    config = Config.load({"model": "from-command-line"}, file, environ)
    assert config.model == "from-command-line"
    assert config.port == 2222
    assert config.max_num_seqs == 11
    assert config.worker == ["tcp://127.0.0.1:7001"]
    assert config.max_num_batched_tokens == Config().max_num_batched_tokens


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "prot"),
        ("port: many", "port"),
        ("- a", "mapping"),
        ("port: [", "cannot read"),
        ("max_num_seqs: 0", "max_num_seqs"),
        ("step_hard_ms: 5", "step_hard_ms"),
        ("scheduling_policy: lottery", "scheduling_policy"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "kernel.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        Config.load({}, file, {})
    assert "\n" not in str(error.value)


def test_every_option_can_come_from_anywhere(tmp_path):
    """Whatever has a default of a simple type survives the way through the environment and a file."""
    file = tmp_path / "kernel.yaml"
    for name in Config.__struct_fields__:
        value = getattr(Config(), name)
        if value in (None, []):
            continue
        text = str(value)
        assert getattr(Config.load({}, None, {f"SYMPHONY_{name.upper()}": text}), name) == value
        assert getattr(Config.load({name: value}, None, {}), name) == value
        file.write_text(f"{name}: {text}\n")
        assert getattr(Config.load({}, file, {}), name) == value
    file.write_text("socket: [1]\n")
    with pytest.raises(ConfigError, match="socket"):
        Config.load({}, file, {})


def test_shares_of_tenants(tmp_path):
    file = tmp_path / "kernel.yaml"
    file.write_text("tenant-share: {acme: 2, guests: 0.5}\n")
    assert Config.load({}, file, {}).tenant_share == {"acme": 2.0, "guests": 0.5}
    assert Config.load({}, None, {"SYMPHONY_TENANT_SHARE": "{acme: 2}"}).tenant_share == {"acme": 2.0}
    for text in ("{acme: 0}", "acme", "{acme: [}"):
        with pytest.raises(ConfigError, match="tenant_share"):
            Config.load({}, None, {"SYMPHONY_TENANT_SHARE": text})


def test_groups_and_quotas(tmp_path):
    file = tmp_path / "kernel.yaml"
    file.write_text("groups: {team: [ann, bob]}\nquota: {ann: {files: 100, pages: 2000}, bob: {kv-byte-s: 1}}\n")
    with pytest.raises(ConfigError, match="kv-byte-s"):
        Config.load({}, file, {})
    file.write_text("groups: {team: [ann, bob]}\nquota: {ann: {files: 100, pages: 2000}, bob: {kv_byte_s: 1.0e+12}}\n")
    config = Config.load({}, file, {})
    assert config.groups == {"team": ["ann", "bob"]}
    assert config.quota == {"ann": UserQuota(files=100, pages=2000), "bob": UserQuota(kv_byte_s=1e12)}
    assert Config.load({}, None, {"SYMPHONY_QUOTA": "{ann: {pages: 5}}"}).quota == {"ann": UserQuota(pages=5)}
    for name, text in (("QUOTA", "{ann: {pages: 0}}"), ("QUOTA", "ann"), ("GROUPS", "{team: ann}")):
        with pytest.raises(ConfigError, match=name.lower()):
            Config.load({}, None, {f"SYMPHONY_{name}": text})


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        Config.load({}, tmp_path / "none.yaml", {})


def test_the_network_wants_a_key():
    with pytest.raises(ConfigError, match="--api-key"):
        Config.load({"host": "0.0.0.0"}, None, {})
    with pytest.raises(ConfigError, match="empty"):
        Config.load({"api_key": ""}, None, {})
    assert Config.load({"host": "0.0.0.0", "api_key": "secret"}, None, {}).host == "0.0.0.0"


def test_loopback():
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "10.0.0.1", "example.org")] == [True] * 3 + [
        False
    ] * 2


def test_what_the_local_worker_is_told():
    options = Config(model="m", dtype="float32", threads=2).worker_options()
    assert options[options.index("--dtype") + 1] == "float32"
    assert options[options.index("--threads") + 1] == "2"
    assert "--num-pages" not in options
    assert "--no-group-prefixes" not in options
    assert "--no-group-prefixes" in Config(group_prefixes=False).worker_options()
