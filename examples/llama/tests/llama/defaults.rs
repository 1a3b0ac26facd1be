//! `generation_config.json`: what comes before what, and which settings are refused.

use llama::defaults::GenerationDefaults;
use llama::generate::Length;
use llama::sampling::Sampling;

fn parse(json: &str) -> GenerationDefaults {
    GenerationDefaults::parse(json).unwrap_or_else(|error| panic!("{json}: {error:#}"))
}

fn sampling(temperature: f64, top_k: Option<usize>, top_p: f64) -> Sampling {
    Sampling::new(temperature, top_k, top_p).unwrap()
}

#[test]
fn eos_tokens() {
    assert_eq!(parse(r#"{"eos_token_id": 1}"#).eos_tokens(), Some(vec![1]));
    assert_eq!(parse(r#"{"eos_token_id": [1, 2]}"#).eos_tokens(), Some(vec![1, 2]));
    assert_eq!(parse(r#"{"eos_token_id": -1}"#).eos_tokens(), Some(vec![]));
    assert_eq!(parse(r#"{"eos_token_id": null}"#).eos_tokens(), None);
    assert_eq!(parse("{}").eos_tokens(), None);
}

/// As `_get_default_generation_params` of transformers 5.24 fills in.
#[test]
fn what_is_asked_for_comes_before_what_the_file_says() {
    let greedy =
        parse(r#"{"do_sample": null, "temperature": 0.6, "top_p": 0.9, "top_k": 7, "typical_p": 0.5}"#);
    assert_eq!(greedy.sampling(None, None, None).unwrap(), sampling(0.0, None, 1.0));
    let greedy = parse(r#"{"temperature": 0.6, "top_p": 0.9, "typical_p": 1.0, "epsilon_cutoff": 0.0}"#);
    assert_eq!(greedy.sampling(None, None, None).unwrap(), sampling(0.0, None, 1.0));
    assert_eq!(greedy.sampling(Some(1.5), None, None).unwrap(), sampling(1.5, None, 0.9));
    assert_eq!(greedy.sampling(None, Some(3), None).unwrap(), sampling(0.6, Some(3), 0.9));

    let sampled = parse(r#"{"do_sample": true, "top_p": 0.9, "min_p": 0.1}"#);
    let expected = sampling(1.0, Some(50), 0.9).min_p(0.1).unwrap();
    assert_eq!(sampled.sampling(None, None, None).unwrap(), expected);
    assert_eq!(sampled.sampling(Some(0.0), None, None).unwrap(), sampling(0.0, None, 1.0));
    let all = parse(r#"{"do_sample": true, "temperature": 0.6, "top_k": 0}"#);
    assert_eq!(all.sampling(None, None, Some(0.5)).unwrap(), sampling(0.6, None, 0.5));
    assert_eq!(parse("{}").sampling(None, Some(5), None).unwrap(), sampling(1.0, Some(5), 1.0));
    assert!(parse("{}").sampling(None, Some(0), None).is_err());
    assert!(parse("{}").sampling(Some(f64::NAN), None, None).is_err());
}

#[test]
fn lengths() {
    assert_eq!(parse("{}").length(None), Length::New(256));
    assert_eq!(parse(r#"{"max_length": 20}"#).length(None), Length::Total(20));
    assert_eq!(parse(r#"{"max_length": 20, "max_new_tokens": 5}"#).length(None), Length::New(5));
    assert_eq!(parse(r#"{"max_length": 20, "max_new_tokens": 5}"#).length(Some(7)), Length::New(7));
}

#[test]
fn settings_that_are_off() {
    let off = r#"{"num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0.0, "guidance_scale": 1,
        "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "num_return_sequences": 1,
        "forced_bos_token_id": null, "forced_eos_token_id": null, "sequence_bias": {}, "stop_strings": [],
        "exponential_decay_length_penalty": null, "remove_invalid_values": false, "repetition_penalty": 1,
        "no_repeat_ngram_size": 0, "bad_words_ids": [], "suppress_tokens": [], "begin_suppress_tokens": null,
        "min_length": 0, "min_new_tokens": -1, "length_penalty": 2.0, "early_stopping": true,
        "diversity_penalty": 0.5, "renormalize_logits": true, "cache_implementation": "static",
        "output_scores": true, "pad_token_id": 0, "bos_token_id": 0, "prompt_lookup_num_tokens": 10,
        "transformers_version": "5.24.0", "chat_format": "chatml"}"#;
    assert!(parse(off).rules(10).unwrap().are_none());
    parse(r#"{"do_sample": true, "typical_p": 1.0, "epsilon_cutoff": 0, "eta_cutoff": 1.0, "top_h": null}"#)
        .sampling(None, None, None)
        .unwrap();
}

#[test]
fn refusals_name_the_setting() {
    for (setting, message) in [
        (r#""num_beams": 4"#, "`num_beams` is 4, which this program cannot do"),
        (r#""penalty_alpha": 0.6"#, "`penalty_alpha` is 0.6"),
        (r#""forced_bos_token_id": 0"#, "`forced_bos_token_id` is 0"),
        (r#""forced_eos_token_id": [0]"#, "`forced_eos_token_id` is [0]"),
        (r#""sequence_bias": [[[1], 2.0]]"#, "`sequence_bias` is [[[1],2.0]]"),
        (r#""exponential_decay_length_penalty": [5, 1.1]"#, "`exponential_decay_length_penalty` is"),
        (r#""encoder_repetition_penalty": 1.2"#, "`encoder_repetition_penalty` is 1.2"),
        (r#""guidance_scale": 1.5"#, "`guidance_scale` is 1.5"),
        (r#""stop_strings": "\n""#, "`stop_strings` is"),
        (r#""max_time": 1.0"#, "`max_time` is 1.0"),
        (r#""watermarking_config": {"bias": 2.5}"#, "`watermarking_config` is"),
        (r#""cache_implementation": "quantized""#, "`cache_implementation` is \"quantized\""),
        (r#""repetition_penalty": 0"#, "`repetition_penalty` is 0, expected"),
        (r#""repetition_penalty": 1e300"#, "`repetition_penalty` is"),
        (r#""repetition_penalty": "1.2""#, "repetition_penalty: invalid type: string \"1.2\", expected f64"),
        (
            r#""no_repeat_ngram_size": 2.5"#,
            "no_repeat_ngram_size: invalid type: floating point `2.5`, expected i64",
        ),
        (r#""suppress_tokens": 5"#, "suppress_tokens: invalid type: integer `5`, expected a sequence"),
        (r#""bad_words_ids": [5]"#, "bad_words_ids[0]: invalid type: integer `5`, expected a sequence"),
        (r#""bad_words_ids": [[]]"#, "`bad_words_ids` has a word without a token"),
        (r#""bad_words_ids": [[-1]]"#, "bad_words_ids[0][0]: invalid value: integer `-1`, expected u32"),
        (r#""max_new_tokens": 0"#, "`max_new_tokens` is 0, expected at least 1"),
        (r#""max_length": 0"#, "`max_length` is 0, expected at least 1"),
        (r#""max_length": -1"#, "max_length: invalid value: integer `-1`, expected usize"),
        (r#""top_k": -1"#, "top_k: invalid value: integer `-1`, expected usize"),
        (r#""do_sample": "yes""#, "do_sample: invalid type: string \"yes\", expected a boolean"),
        (r#""eos_token_id": 1.5"#, "eos_token_id: expected a token id or an array of token ids"),
    ] {
        let refusal = GenerationDefaults::parse(&format!("{{{setting}}}")).err();
        let refusal = format!("{:#}", refusal.unwrap_or_else(|| panic!("{setting} should be refused")));
        assert!(refusal.contains(message), "{refusal:?} should contain {message:?}");
    }
    for setting in
        [r#""typical_p": 0.9"#, r#""epsilon_cutoff": 0.1"#, r#""eta_cutoff": 0.1"#, r#""top_h": 0.4"#]
    {
        let sampled = parse(&format!(r#"{{"do_sample": true, {setting}}}"#)).sampling(None, None, None);
        assert!(format!("{:#}", sampled.unwrap_err()).contains("which this program cannot do"), "{setting}");
        parse(&format!("{{{setting}}}")).sampling(None, None, None).unwrap();
    }
    let word = parse(r#"{"bad_words_ids": [[3, 10]]}"#);
    assert!(
        word.rules(10).unwrap_err().to_string().contains("`bad_words_ids` has token 10, expected below 10")
    );
    assert!(word.rules(11).is_ok());
}
