//! The program as its users meet it: a process with arguments, two streams and an exit code.

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};

use crate::checkpoint::Scratch;
use crate::fixture::folder;

fn llama() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llama"));
    command.env_remove("RUST_LOG").env("RUST_BACKTRACE", "1");
    command
}

pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn run(arguments: &[&str]) -> Ran {
    ran(llama().args(arguments).output().unwrap())
}

fn run_with_input(input: &[u8], arguments: &[&str]) -> Ran {
    let mut command = llama();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may be gone before it has read all.
    let _ = child.stdin.take().unwrap().write_all(input);
    ran(child.wait_with_output().unwrap())
}

fn ran(output: Output) -> Ran {
    let ran = Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    for word in ["panicked", "stack backtrace"] {
        assert!(!ran.err.contains(word), "{}", ran.err);
    }
    ran
}

fn small(name: &str) -> String {
    folder(name).display().to_string()
}

#[track_caller]
fn fails(arguments: &[&str], code: i32, message: &str) {
    let ran = run(arguments);
    assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{}", ran.err);
    assert!(ran.err.contains(message), "{:?} should contain {message:?}", ran.err);
}

#[test]
fn without_arguments_it_tells_a_story() {
    let ran = run(&[]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(ran.out.starts_with("Once upon a time") && ran.out.len() > 200, "{}", ran.out);
    let line = ran.err.lines().last().unwrap();
    for part in ["prompt ", " tok/s | generated ", " | time to first token ", " ms"] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(ran.err.lines().count(), 1, "nothing but the closing line: {}", ran.err);
}

#[test]
fn what_streams_out_is_the_text_of_all_tokens() {
    let about = std::fs::read(folder("").join("tiny.json")).unwrap();
    let about: serde_json::Value = serde_json::from_slice(&about).unwrap();
    // Those that were tokenized as the program does it. What ends a story is no text, though transformers shows it.
    let prompts =
        about["prompts"].as_array().unwrap().iter().filter(|prompt| prompt["add_special_tokens"] == true);
    let texts = prompts.map(|prompt| {
        let [text, greedy] = ["text", "greedy_text"].map(|field| prompt[field].as_str().unwrap());
        (text, format!("{text}{greedy}\n").replace("</s>", "").replace("<s>", ""))
    });
    let texts: Vec<_> = texts.collect();
    assert!(texts.len() > 1);
    let common = ["--dtype", "f32", "--max-new-tokens", "64", "--ignore-eos"];
    for (prompt, text) in &texts {
        let ran = run(&[&common[..], &["--prompt", prompt]].concat());
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), text.as_str()), "{}", ran.err);
    }
    let prompts = texts.iter().flat_map(|(prompt, _)| ["--prompt", prompt]);
    let batch = run(&common.into_iter().chain(prompts).collect::<Vec<_>>());
    let expected = texts.iter().enumerate();
    let expected =
        expected.map(|(index, (_, text))| format!("=== {} of {} ===\n{text}", index + 1, texts.len()));
    assert_eq!(batch.out, expected.collect::<Vec<_>>().join("\n"));
}

#[test]
fn bytes_that_are_no_text_still_come_out_as_text() {
    // The tokens of this model are bytes, and it is random.
    let model = small("mha_untied");
    let sample = |seed: &str| {
        run(&[
            "--model",
            &model,
            "--prompt",
            "Füchse 🦊",
            "--temperature",
            "1.5",
            "--top-p",
            "0.95",
            "--seed",
            seed,
        ])
    };
    let (one, again, other) = (sample("1"), sample("1"), sample("2"));
    assert!(one.out.starts_with("Füchse 🦊"));
    assert_eq!(one.out, again.out);
    assert_ne!(one.out, other.out);
}

#[test]
fn prompts_from_files() {
    let scratch = Scratch::new("prompts");
    scratch.write("a.txt", "Tom had a\n");
    scratch.write("b.txt", "Mia went\r\n");
    let [a, b] = ["a.txt", "b.txt"].map(|file| scratch.0.join(file).display().to_string());
    let common = ["--max-new-tokens", "8"];
    let files = run(&[&common[..], &["--prompt-file", &a, "--prompt-file", &b]].concat());
    let direct = run(&[&common[..], &["--prompt", "Tom had a", "--prompt", "Mia went"]].concat());
    assert_eq!((files.code, files.out), (Some(0), direct.out));
    fails(
        &["--prompt-file", "/no/such/prompt"],
        1,
        "error: cannot read the prompt /no/such/prompt: No such file",
    );
}

#[test]
fn prompts_that_look_like_options() {
    let scratch = Scratch::new("hyphens");
    for (index, prompt) in ["- item", "--x", "-1", "--seed", "-", "--", "--prompt=a"].into_iter().enumerate()
    {
        let file = format!("{index}.txt");
        scratch.write(&file, prompt);
        let file = scratch.0.join(file).display().to_string();
        let expected = run(&["--max-new-tokens", "4", "--prompt-file", &file]);
        assert!(expected.code == Some(0) && expected.out.starts_with(prompt), "{}", expected.err);
        // `-` alone is standard input.
        if prompt != "-" {
            let direct = run(&["--max-new-tokens", "4", "--prompt", prompt]);
            assert_eq!((direct.code, direct.out), (Some(0), expected.out), "{prompt}: {}", direct.err);
        }
    }
}

#[test]
fn prompts_from_standard_input() {
    let common = ["--max-new-tokens", "8"];
    let direct = run(&[&common[..], &["--prompt", "Mia went", "--prompt", "Tom had a"]].concat());
    for arguments in [["--prompt", "-"], ["--prompt-file", "-"]] {
        let alone = run_with_input(b"Tom had a\n", &[&common[..], &arguments].concat());
        assert_eq!(
            (alone.code, &*alone.out),
            (Some(0), &*run(&[&common[..], &["--prompt", "Tom had a"]].concat()).out)
        );
        let second = [&common[..], &["--prompt", "Mia went"], &arguments].concat();
        assert_eq!(run_with_input(b"Tom had a", &second).out, direct.out);
    }
    let fails = |input: &[u8], arguments: &[&str], message: &str| {
        let ran = run_with_input(input, arguments);
        assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(1), "", message));
    };
    let once = "error: cannot read the prompt -: standard input holds one prompt only\n";
    fails(b"a", &["--prompt", "-", "--prompt", "-"], once);
    fails(b"a", &["--prompt-file", "-", "--prompt", "-"], once);
    let bytes = "error: cannot read the prompt -: invalid utf-8 sequence of 1 bytes from index 1\n";
    fails(b"a\xFF", &["--prompt", "-"], bytes);

    // A piped prompt that no option asks for is pointed out.
    let forgotten = run_with_input(b"Tom had a", &common);
    assert!(forgotten.out.starts_with("Once upon a time"), "{}", forgotten.out);
    let note = "standard input is not read; `--prompt -` takes it for the prompt\n";
    assert!(forgotten.err.starts_with(note), "{}", forgotten.err);
    let not_needed = run_with_input(b"", &[&common[..], &["--prompt", "Tom had a"]].concat());
    assert!(!not_needed.err.contains("standard input"), "{}", not_needed.err);
}

#[cfg(unix)]
#[test]
fn prompts_from_files_that_have_no_end() {
    let message = "error: cannot read the prompt /dev/zero: it is longer than 64 MiB";
    fails(&["--prompt-file", "/dev/zero"], 1, message);
    fails(&["--prompt-file", "/"], 1, "error: cannot read the prompt /: Is a directory");
}

#[test]
fn of_several_prompts_the_wrong_one_is_named() {
    let small = small("mha_untied");
    let long = "a".repeat(256);
    let arguments = ["--model", &small, "--prompt", "a", "--prompt", &long, "--prompt", "b"];
    fails(&arguments, 1, "error: prompt 2: it has 257 tokens, which leaves no room");

    // Without a token that begins every text.
    let model = Scratch::copy_of("mha_untied", "no-bos");
    let path = model.0.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    tokenizer["post_processor"] = serde_json::Value::Null;
    model.write("tokenizer.json", tokenizer.to_string());
    model.write("empty.txt", "\n");
    let (model, file) = (model.0.display().to_string(), model.0.join("empty.txt").display().to_string());
    let message = "error: prompt 2: it is empty, and this model needs a token to write on from";
    fails(&["--model", &model, "--prompt", "a", "--prompt", "", "--prompt", "b"], 1, message);
    fails(&["--model", &model, "--prompt-file", &file, "--prompt", "b"], 1, message);
}

#[test]
fn options_reach_the_model() {
    let model = small("gqa_llama3");
    let with = |more: &[&str]| {
        let ran =
            run(&[&["--model", &model, "--prompt", "abc", "--max-new-tokens", "40", "--dtype", "f32"], more]
                .concat());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        ran.out
    };
    let plain = with(&[]);
    assert_eq!(with(&["--layout", "hnd", "--page-size", "3"]), plain);
    assert_eq!(with(&["--top-k", "1"]), plain);
    for when in ["--graph", "--graph=always", "--graph=auto", "--graph=never"] {
        assert_eq!(with(&[when]), plain, "{when}");
    }
    assert_ne!(with(&["--top-k", "5"]), plain);
    let long = run(&["--model", &model, "--prompt", "abc", "--max-new-tokens", "9999", "--ignore-eos"]);
    assert_eq!(long.code, Some(0));
    assert!(
        long.err.contains("prompt 1: the text ends where the model's context of 256 tokens does"),
        "{}",
        long.err
    );
    assert!(
        long.err.contains("prompt 4 tokens") && long.err.contains("generated 252 tokens"),
        "{}",
        long.err
    );
}

#[test]
fn failures_are_one_line_and_code_1() {
    fails(&["--model", "/no/such/folder"], 1, "error: there is no model folder /no/such/folder");
    let model = Scratch::copy_of("mha_untied", "process");
    let path = model.0.display().to_string();
    model.configure("hidden_size", 97);
    fails(&["--model", &path], 1, "`hidden_size` 97 is no multiple");
    model.configure("hidden_size", 192);
    fails(&["--model", &path], 1, "from config.json");
    model.configure("hidden_size", "96");
    fails(&["--model", &path], 1, "config.json: hidden_size: invalid type: string \"96\", expected usize");
    model.configure("hidden_size", 96);
    model.write("model.safetensors", "nothing of the kind");
    fails(&["--model", &path], 1, "model.safetensors is damaged");
    // `tokenizers` panics over this one.
    let normalizer = r#"{"normalizer": {"type": "Precompiled", "precompiled_charsmap": 5}}"#;
    model.write("tokenizer.json", normalizer);
    fails(&["--model", &path], 1, "tokenizer.json: Precompiled: Error(\"invalid type: integer `5`");
    let small = small("mha_untied");
    fails(&["--model", &small, "--temperature", "-1"], 1, "the temperature is -1");
    fails(&["--model", &small, "--top-p", "0"], 1, "top-p is 0");
    let long = "a".repeat(256);
    fails(&["--model", &small, "--prompt", &long], 1, "prompt 1: it has 257 tokens, which leaves no room");
    fails(&["--max-new-tokens", "0"], 2, "expected at least 1");
    fails(&["--device", "abacus"], 2, "possible values: flex, cuda, rocm, vulkan, cpu");
}

/// The devices that there are, and whether this build has them.
const DEVICES: [(&str, bool); 5] = [
    ("flex", cfg!(feature = "flex")),
    ("cuda", cfg!(feature = "cuda")),
    ("rocm", cfg!(feature = "rocm")),
    ("vulkan", cfg!(feature = "vulkan")),
    ("cpu", cfg!(feature = "cpu")),
];

/// Whether `BURN_FLASHINFER_TEST_DEVICES` leaves the device in, as for the tests of the operations.
fn is_asked_for(name: &str) -> bool {
    let asked = std::env::var("BURN_FLASHINFER_TEST_DEVICES").ok();
    asked.is_none_or(|asked| asked.split(',').any(|asked| asked.trim() == name))
}

#[test]
fn devices_that_are_not_there() {
    for (name, built) in DEVICES.into_iter().filter(|&(name, built)| !built || is_asked_for(name)) {
        let ran = run(&["--device", name, "--max-new-tokens", "4"]);
        match (built, ran.code) {
            (true, Some(0)) => {}
            (true, code) => {
                assert_eq!(code, Some(1), "{}", ran.err);
                assert!(ran.err.contains(&format!("the device `{name}` does not work: ")), "{}", ran.err);
            }
            (false, code) => {
                assert_eq!(code, Some(1));
                assert_eq!(
                    ran.err,
                    format!("error: this build has no `{name}`; rebuild with `--features {name}`\n")
                );
            }
        }
    }
}

/// A few tokens of a batch, read from pages and written to them: the same text as on the CPU. All devices of the build
/// that are asked for must work.
#[cfg(feature = "flex")]
#[cfg_attr(feature = "rocm", serial_test::serial(device))]
#[test]
fn every_device_writes_the_same() {
    let on = |device: &str, more: &[&str]| {
        let common = ["--dtype", "f32", "--temperature", "0", "--max-new-tokens", "6", "--page-size", "4"];
        let prompts = ["--prompt", "Once upon a time", "--prompt", "Tom had a"];
        let ran = run(&[&["--device", device], more, &common, &prompts].concat());
        assert_eq!(ran.code, Some(0), "{device}, {more:?}: {}", ran.err);
        ran.out
    };
    let expected = on("flex", &["--graph=never"]);
    for (name, _) in DEVICES.into_iter().filter(|&(name, built)| built && is_asked_for(name)) {
        for graph in ["--graph=auto", "--graph=never"] {
            assert_eq!(on(name, &[graph]), expected, "{name}, {graph}");
        }
    }
}

/// As with `llama | head -c 20`.
#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut command = llama();
    command.args(["--max-new-tokens", "200", "--ignore-eos"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 20]).unwrap();
    drop(stdout);
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
}

#[test]
fn the_log_says_more_if_asked() {
    let output = llama().args(["--max-new-tokens", "2"]).env("RUST_LOG", "debug").output().unwrap();
    let ran = ran(output);
    assert!(ran.err.contains("key-value cache") && ran.err.contains("loaded "), "{}", ran.err);
    assert_eq!(ran.out.lines().count(), 1, "{}", ran.out);
}

#[test]
fn help() {
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for option in [
        "--model",
        "--device",
        "--dtype",
        "--prompt-file",
        "--perplexity",
        "--kv-cache-dtype",
        "--kv-scales",
        "--seed",
        "--page-size",
        "--ignore-eos",
        "--graph",
    ] {
        assert!(help.out.contains(option), "{}", help.out);
    }
}
