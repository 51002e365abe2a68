//! A pod that asks others, as the callers of a Service do.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::namespace::{Namespace, Output};

/// A pod with curl, openssl, h2load and a shell.
#[derive(Debug)]
pub struct Caller<'a> {
    namespace: &'a Namespace<'a>,
    pod: String,
}

/// Answer to one HTTP request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Name of the app that answered, from its header `x-answered-by`; empty when there is none.
    pub by: String,
    /// Pod of that app, from its header `x-pod`.
    pub pod: String,
    /// The body.
    pub body: String,
}

impl Namespace<'_> {
    /// A pod that asks others; waits until it is up.
    pub fn caller(&self) -> Caller<'_> {
        Caller::start(self)
    }
}

impl<'a> Caller<'a> {
    fn start(namespace: &'a Namespace<'a>) -> Self {
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let pod = format!("caller-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        namespace.apply(&format!(
            "
apiVersion: v1
kind: Pod
metadata: {{name: {pod}, labels: {{app: caller}}}}
spec:
  containers:
    - {{name: box, image: 'localhost/rig/box:1', imagePullPolicy: Never, command: [app, pause]}}
"
        ));
        namespace.ready_pod(&pod);
        Self { namespace, pod }
    }

    /// Name of the pod.
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// Runs a command in the pod.
    pub fn run(&self, command: &[&str]) -> Output {
        self.namespace.exec(&self.pod, Some("box"), command)
    }

    /// Sends a request with curl; `options` are curl's. Panics when there is no answer.
    pub fn get(&self, url: &str, options: &[&str]) -> Answer {
        self.try_get(url, options)
            .unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    /// The same; the error is curl's.
    pub fn try_get(&self, url: &str, options: &[&str]) -> Result<Answer, String> {
        let mut command = vec![
            "curl",
            "--silent",
            "--show-error",
            "--max-time",
            "30",
            "--include",
        ];
        command.extend(options);
        command.push(url);
        let output = self.run(&command);
        if output.success {
            Ok(Answer::parse(&output.stdout))
        } else {
            Err(output.stderr)
        }
    }
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let mut answer = Self {
            status: status
                .and_then(|code| code.parse().ok())
                .expect("a status line"),
            by: String::new(),
            pod: String::new(),
            body: body.to_owned(),
        };
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            match name.to_ascii_lowercase().as_str() {
                "x-answered-by" => value.clone_into(&mut answer.by),
                "x-pod" => value.clone_into(&mut answer.pod),
                _ => {}
            }
        }
        answer
    }
}
