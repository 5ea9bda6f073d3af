//! Parses the `[[queue]]` tables of the config file: queues whose operations the
//! server executes itself.

use std::{collections::HashSet, time::Duration};

use serde::{Deserialize, Deserializer, de::Error};

use crate::{
    operation::{options::QueueName, retry::RetryPolicy},
    server::QueueConfig,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueTable {
    name: String,
    command: Vec<String>,
    #[serde(default = "one")]
    concurrency: usize,
    retry: Option<RetrySetting>,
}

/// A number of attempts, or a full retry policy.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "use a number of attempts, or a table of max_attempts, max_worker_losses, \
    initial_backoff and max_backoff such as \"1s\", multiplier and jitter"
)]
enum RetrySetting {
    Attempts(u32),
    Policy(RetryPolicyTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryPolicyTable {
    max_attempts: Option<u32>,
    max_worker_losses: Option<u32>,
    #[serde(default, deserialize_with = "duration")]
    initial_backoff: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    max_backoff: Option<Duration>,
    multiplier: Option<f64>,
    jitter: Option<f64>,
}

/// Removes the `[[queue]]` tables from the config file and parses them. Errors name
/// the queue.
pub(super) fn take_queues(table: &mut toml::Table) -> Result<Vec<QueueConfig>, String> {
    let tables = match table.remove("queue") {
        None => return Ok(Vec::new()),
        Some(toml::Value::Array(tables)) => tables,
        Some(_) => return Err("use [[queue]], with two brackets, for each queue".to_owned()),
    };
    let mut names = HashSet::new();
    let mut queues = Vec::new();
    for (index, table) in tables.into_iter().enumerate() {
        let name = table.get("name").and_then(toml::Value::as_str);
        let title = match name {
            Some(name) => format!("queue {name:?}"),
            None => format!("[[queue]] number {}", index + 1),
        };
        // The message of toml ends with a newline.
        let queue = parse_queue(table).map_err(|error| format!("{title}: {}", error.trim()))?;
        if !names.insert(queue.name.clone()) {
            return Err(format!("{title} is defined twice; use unique names"));
        }
        queues.push(queue);
    }
    Ok(queues)
}

fn parse_queue(table: toml::Value) -> Result<QueueConfig, String> {
    let queue: QueueTable = table.try_into().map_err(|error| error.to_string())?;
    QueueName::parse(&queue.name).map_err(|error| format!("name: {error}"))?;
    if queue.concurrency == 0 {
        return Err("concurrency: must be at least 1".to_owned());
    }
    let retry = queue.retry.map(RetryPolicy::from);
    if let Some(policy) = &retry {
        policy.check().map_err(|error| format!("retry: {error}"))?;
    }
    Ok(QueueConfig {
        name: queue.name,
        command: queue.command,
        concurrency: queue.concurrency,
        retry_policy: retry,
    })
}

impl From<RetrySetting> for RetryPolicy {
    fn from(retry: RetrySetting) -> Self {
        let policy = match retry {
            RetrySetting::Attempts(attempts) => return Self::with_max_attempts(attempts),
            RetrySetting::Policy(policy) => policy,
        };
        let defaults = Self::default();
        let initial_backoff = policy.initial_backoff.unwrap_or(defaults.initial_backoff);
        Self {
            max_attempts: policy.max_attempts.unwrap_or(defaults.max_attempts),
            max_worker_losses: policy
                .max_worker_losses
                .unwrap_or(defaults.max_worker_losses),
            initial_backoff,
            // Raise the default, so that a long initial backoff alone is valid.
            max_backoff: policy
                .max_backoff
                .unwrap_or_else(|| defaults.max_backoff.max(initial_backoff)),
            multiplier: policy.multiplier.unwrap_or(defaults.multiplier),
            jitter: policy.jitter.unwrap_or(defaults.jitter),
        }
    }
}

fn duration<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(value)?;
    humantime::parse_duration(&text)
        .map(Some)
        .map_err(D::Error::custom)
}

fn one() -> usize {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_config(text: &str) -> Result<Vec<QueueConfig>, String> {
        take_queues(&mut text.parse().unwrap())
    }

    #[test]
    fn queue_table_accepts_command_concurrency_and_retry() {
        let queues = parse_config(
            r#"
            [[queue]]
            name = "thumbs"
            command = ["thumbs", "--small"]

            [[queue]]
            name = "video"
            command = ["ffmpeg"]
            concurrency = 2
            retry = 3

            [[queue]]
            name = "mail"
            command = ["mail"]
            retry = { max_attempts = 5, initial_backoff = "2m", jitter = 0.5 }
            "#,
        )
        .unwrap();
        assert_eq!(queues[0].command, ["thumbs", "--small"]);
        assert_eq!((queues[0].concurrency, &queues[0].retry_policy), (1, &None));
        assert_eq!(queues[1].concurrency, 2);
        assert_eq!(
            queues[1].retry_policy,
            Some(RetryPolicy::with_max_attempts(3))
        );
        let policy = RetryPolicy {
            initial_backoff: Duration::from_secs(120),
            max_backoff: Duration::from_secs(120),
            jitter: 0.5,
            ..RetryPolicy::with_max_attempts(5)
        };
        assert_eq!(queues[2].retry_policy, Some(policy));
        assert!(parse_config("").unwrap().is_empty());
    }

    // Rules: CLI-2
    #[test]
    fn invalid_queue_table_is_rejected_with_name_and_setting() {
        let queue = |rest: &str| format!("[[queue]]\nname = \"a\"\ncommand = [\"c\"]\n{rest}");
        for (text, title, problem) in [
            (queue("comand = 1"), "queue \"a\"", "`comand`"),
            (queue("concurrency = \"x\""), "queue \"a\"", "concurrency"),
            (
                queue("concurrency = 0"),
                "queue \"a\"",
                "concurrency: must be",
            ),
            (queue("retry = 0"), "queue \"a\"", "retry: max_attempts"),
            (queue("retry = \"often\""), "queue \"a\"", "retry"),
            (
                queue("retry = { max_attempts = 1, jitter = 2.0 }"),
                "queue \"a\"",
                "retry: jitter",
            ),
            (
                queue("retry = { backoff = \"1s\" }"),
                "queue \"a\"",
                "initial_backoff",
            ),
            ("[[queue]]\nname = \"a\"".into(), "queue \"a\"", "`command`"),
            (
                "[[queue]]\ncommand = []".into(),
                "[[queue]] number 1",
                "`name`",
            ),
            (
                "[[queue]]\nname = \"a b\"\ncommand = []".into(),
                "queue \"a b\"",
                "name: ",
            ),
            ("[queue]\nname = \"a\"".into(), "[[queue]]", "two brackets"),
            (format!("{0}\n{0}", queue("")), "queue \"a\"", "twice"),
        ] {
            let error = parse_config(&text).unwrap_err();
            println!("{error}");
            assert!(
                error.starts_with(title) || error.contains("use [[queue]]"),
                "{error}"
            );
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
