//! `rimg doctor`: what this machine allows, what follows from it, and what to do.

use rimg_runner::doctor::{CgroupMode, Facts, UserNamespaces, facts};
use rimg_runner::kernel;
use serde_json::json;

use crate::failure::Failure;
use crate::session::Session;
use crate::terminal::{print_json, print_line};

/// Flags of `rimg doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 when containers can run here, 1 when they cannot.")]
pub(crate) struct DoctorArgs {}

/// How good a finding is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Good,
    /// Something works less well.
    Limited,
    /// Containers cannot run.
    Bad,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Good => "ok",
            Verdict::Limited => "limited",
            Verdict::Bad => "missing",
        }
    }
}

struct Finding {
    subject: &'static str,
    verdict: Verdict,
    found: String,
    advice: &'static str,
}

pub(crate) fn run(session: &Session, _: DoctorArgs) -> Result<u8, Failure> {
    let facts = facts();
    let mut findings =
        vec![version(&facts), namespaces(&facts), ids(&facts), overlay(&facts), seccomp(&facts)];
    findings.extend([cgroups(&facts), store(session)]);
    if session.json() {
        let value = |finding: &Finding| json!({"subject": finding.subject, "verdict": finding.verdict.word(), "found": finding.found, "advice": finding.advice});
        print_json(&findings.iter().map(value).collect::<Vec<_>>())?;
    } else {
        for finding in &findings {
            print_line(&format!("{:<8} {}: {}", finding.verdict.word(), finding.subject, finding.found))?;
            if finding.verdict != Verdict::Good {
                print_line(&format!("         {}", finding.advice))?;
            }
        }
    }
    Ok(u8::from(findings.iter().any(|finding| finding.verdict == Verdict::Bad)))
}

fn finding(
    subject: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    advice: &'static str,
) -> Finding {
    Finding { subject, verdict, found: found.into(), advice }
}

fn version(facts: &Facts) -> Finding {
    let since = if facts.uid == 0 { kernel::ROOT_SINCE } else { kernel::USERS_SINCE };
    let verdict = if kernel::Version::running() >= since { Verdict::Good } else { Verdict::Bad };
    finding(
        "kernel",
        verdict,
        &facts.kernel,
        "containers need Linux 5.10 for root, 5.11 for others; builds without RUN, and serving, do not",
    )
}

fn namespaces(facts: &Facts) -> Finding {
    let subject = "user namespaces";
    match facts.user_namespaces {
        UserNamespaces::Allowed => finding(subject, Verdict::Good, "allowed", ""),
        UserNamespaces::Forbidden => finding(
            subject,
            Verdict::Bad,
            "the kernel refuses them",
            "as root: sysctl user.max_user_namespaces=15000 and, on Debian, kernel.unprivileged_userns_clone=1",
        ),
        UserNamespaces::Restricted => finding(
            subject,
            Verdict::Bad,
            "they come without privileges (AppArmor)",
            "as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for rimg with `userns,`",
        ),
    }
}

fn ids(facts: &Facts) -> Finding {
    let subject = "subordinate ids";
    if facts.uid == 0 {
        return finding(subject, Verdict::Good, "not needed by root", "");
    }
    let advice = "files in containers belong to you alone, and nobody else can be in them";
    match facts.subordinate_ids {
        Ok(count) => finding(subject, Verdict::Good, format!("{count}"), ""),
        Err(reason) => {
            let (why, next) = super::rootless::explain(reason);
            finding(subject, Verdict::Limited, format!("{why}: {advice}"), next)
        }
    }
}

fn overlay(facts: &Facts) -> Finding {
    match facts.overlay {
        true => finding("overlay", Verdict::Good, "known to the kernel", ""),
        false => finding("overlay", Verdict::Bad, "not known to the kernel", "as root: modprobe overlay"),
    }
}

fn seccomp(facts: &Facts) -> Finding {
    match facts.seccomp {
        true => finding("seccomp", Verdict::Good, "available", ""),
        false => finding("seccomp", Verdict::Bad, "not available", "use a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

fn cgroups(facts: &Facts) -> Finding {
    let mode = match facts.cgroups {
        CgroupMode::None => "none mounted",
        CgroupMode::V1 => "version 1",
        CgroupMode::V2 => "version 2",
        CgroupMode::Hybrid => "version 1 and 2 (hybrid)",
    };
    let controllers = facts.limits.join(", ");
    match ["memory", "cpu", "pids"].iter().all(|wanted| facts.limits.contains(wanted)) {
        true => finding("cgroup limits", Verdict::Good, format!("{mode}: {controllers}"), ""),
        false => finding(
            "cgroup limits",
            Verdict::Limited,
            format!(
                "{mode}: {}",
                if controllers.is_empty() { "none can be set by you" } else { &controllers }
            ),
            "--memory, --cpus and --pids-limit need delegation: systemd-run --user --scope -p Delegate=yes rimg run …",
        ),
    }
}

fn store(session: &Session) -> Finding {
    match session.root() {
        Ok(root) => finding("store", Verdict::Good, root.display().to_string(), ""),
        Err(_) => finding("store", Verdict::Bad, "no place for it", "set HOME, or use --root DIR"),
    }
}
