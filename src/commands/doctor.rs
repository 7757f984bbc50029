//! `rimg doctor`: what this machine allows, what follows from it, and what to do.
//!
//! Owns the wording. The library looks around and tries a container ([`rimg_runner::doctor`]).

use std::path::{Path, PathBuf};

use rimg_runner::doctor::{
    Cause, CgroupMode, Facts, NoUserNamespace, TrialError, UserNamespaceStep, facts, trial,
};
use rimg_runner::kernel::{self, Version};
use rimg_runner::limits::LimitsError;
use rimg_runner::rootfs::Mechanism;
use rimg_runner::userns;
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
    advice: String,
}

pub(crate) fn run(session: &Session, _: DoctorArgs) -> Result<u8, Failure> {
    let facts = facts();
    let mut findings =
        vec![version(&facts), newer_features(), namespaces(&facts), ids(&facts), cgroups(&facts)];
    // After everything that wants to know this user as the system does.
    findings.extend(store_and_container(session, &facts));
    if session.json() {
        let value = |finding: &Finding| json!({"subject": finding.subject, "verdict": finding.verdict.word(), "found": finding.found, "advice": finding.advice});
        print_json(&findings.iter().map(value).collect::<Vec<_>>())?;
    } else {
        for finding in &findings {
            print_line(&format!(
                "{:<8} {}: {}",
                finding.verdict.word(),
                finding.subject,
                indented(&finding.found)
            ))?;
            if finding.verdict != Verdict::Good {
                print_line(&format!("         {}", indented(&finding.advice)))?;
            }
        }
    }
    Ok(u8::from(findings.iter().any(|finding| finding.verdict == Verdict::Bad)))
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n         ")
}

fn finding(
    subject: &'static str,
    verdict: Verdict,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    Finding { subject, verdict, found: found.into(), advice: advice.into() }
}

fn version(facts: &Facts) -> Finding {
    let (since, who) = match facts.uid {
        0 => (kernel::ROOT_SINCE, "root"),
        _ => (kernel::USERS_SINCE, "users other than root"),
    };
    let verdict = if Version::running() >= since { Verdict::Good } else { Verdict::Bad };
    let advice =
        format!("containers of {who} need Linux {since} or newer; builds without RUN, and serving, do not");
    finding("kernel", verdict, &facts.kernel, advice)
}

/// What this kernel is too old for, and what is done without it. All of it works.
fn newer_features() -> Finding {
    let lacking = kernel::FEATURES.iter().filter(|feature| feature.since > Version::running());
    let lines: Vec<String> = lacking
        .map(|feature| format!("without {} (Linux {}): {}", feature.name, feature.since, feature.without))
        .collect();
    let found = if lines.is_empty() { "all that rimg uses".to_owned() } else { lines.join("\n") };
    finding("kernel features", Verdict::Good, found, "")
}

fn namespaces(facts: &Facts) -> Finding {
    let subject = "user namespaces";
    let Err(refused) = &facts.user_namespaces else {
        return finding(subject, Verdict::Good, "allowed", "");
    };
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/usr/local/bin/rimg"));
    finding(subject, Verdict::Bad, refusal(refused), remedy(&refused.cause, &program))
}

fn refusal(refused: &NoUserNamespace) -> String {
    let NoUserNamespace { step, errno, cause } = refused;
    let what = match step {
        UserNamespaceStep::Make => "the kernel refuses them",
        UserNamespaceStep::Use => "they come without privileges",
        UserNamespaceStep::MapIds => "no id can be mapped in them",
    };
    let why = match cause {
        Cause::NoneAllowed => "user.max_user_namespaces is 0".to_owned(),
        Cause::RootOnly => "kernel.unprivileged_userns_clone is 0".to_owned(),
        Cause::AppArmorRestriction => {
            "AppArmor allows them to programs with a profile only (kernel.apparmor_restrict_unprivileged_userns)".to_owned()
        }
        Cause::AppArmorProfile(profile) => format!("rimg is confined by the AppArmor profile {profile}"),
        Cause::Unknown => "no setting shows why".to_owned(),
    };
    format!("{what}: {why} ({})", std::io::Error::from_raw_os_error(*errno))
}

fn remedy(cause: &Cause, program: &Path) -> String {
    match cause {
        Cause::NoneAllowed => {
            "as root: sysctl -w user.max_user_namespaces=15000 (and in /etc/sysctl.d, to stay)".to_owned()
        }
        Cause::RootOnly => {
            "as root: sysctl -w kernel.unprivileged_userns_clone=1 (and in /etc/sysctl.d, to stay)".to_owned()
        }
        Cause::AppArmorRestriction => format!(
            "as root, write this profile to /etc/apparmor.d/rimg and load it with: apparmor_parser -r /etc/apparmor.d/rimg\n{}",
            apparmor_profile(program)
        ),
        Cause::AppArmorProfile(_) => {
            "the profile has to have the rule `userns,`; or run rimg outside of what the profile confines".to_owned()
        }
        Cause::Unknown => {
            "inside of a container: its runtime has to allow them (docker: --privileged, or seccomp and AppArmor profiles \
             that do); else the system's security module forbids them"
                .to_owned()
        }
    }
}

/// The profile that lets this program, and no other, have user namespaces: apparmor.d(5), *userns rules*.
fn apparmor_profile(program: &Path) -> String {
    let mut path = String::new();
    for c in program.display().to_string().chars() {
        // What apparmor.d(5) gives a meaning in a path, also in a quoted one.
        if "\\\"*?[]{}^@".contains(c) {
            path.push('\\');
        }
        path.push(c);
    }
    format!("abi <abi/4.0>,\nprofile rimg \"{path}\" flags=(unconfined) {{\n  userns,\n}}")
}

fn ids(facts: &Facts) -> Finding {
    let subject = "subordinate ids";
    if facts.uid == 0 {
        return finding(subject, Verdict::Good, "not needed by root", "");
    }
    let advice = "containers have no users but root, which is you: changing owners or users fails in them";
    match facts.subordinate_ids {
        Ok(count) => finding(subject, Verdict::Good, format!("{count}"), ""),
        Err(reason) => {
            let (why, next) = super::rootless::explain(reason);
            finding(subject, Verdict::Limited, format!("{why}: {advice}"), next)
        }
    }
}

fn cgroups(facts: &Facts) -> Finding {
    let mode = match facts.cgroups {
        CgroupMode::None => "none mounted",
        CgroupMode::V1 => "version 1",
        CgroupMode::V2 => "version 2",
        CgroupMode::Hybrid => "version 1 and 2 (hybrid)",
    };
    let usable = facts.limits().join(", ");
    let usable = if usable.is_empty() { "none can be set by you" } else { &usable };
    let advice = why_not(&facts.controllers);
    let verdict = if advice.is_empty() { Verdict::Good } else { Verdict::Limited };
    finding("cgroup limits", verdict, format!("{mode}: {usable}"), advice.join("\n"))
}

fn why_not(controllers: &[(&'static str, Result<(), LimitsError>)]) -> Vec<String> {
    let all = |is: fn(&LimitsError) -> bool| {
        let names = controllers.iter().filter(|(_, tried)| tried.as_ref().is_err_and(is));
        names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    };
    let missing = all(|error| matches!(error, LimitsError::NoController { .. }));
    let undelegated = all(|error| matches!(error, LimitsError::NotDelegated { .. }));
    let mut lines = Vec::new();
    if !missing.is_empty() {
        lines.push(format!(
            "not mounted: {missing}: a kernel parameter, or the container that rimg runs in, has them off"
        ));
    }
    if !undelegated.is_empty() {
        lines.push(format!(
            "not delegated to you: {undelegated}: run as root, or, with cgroup version 2: systemd-run --user --scope -p Delegate=yes rimg run …"
        ));
    }
    let errors = controllers.iter().filter_map(|(_, tried)| tried.as_ref().err());
    let others = errors.filter(|error| {
        !matches!(error, LimitsError::NoController { .. } | LimitsError::NotDelegated { .. })
    });
    lines.extend(others.map(ToString::to_string));
    lines
}

/// The store's place, and a container tried on its file system.
fn store_and_container(session: &Session, facts: &Facts) -> Vec<Finding> {
    let root = match session.root() {
        Ok(root) => root,
        Err(_) => {
            return vec![finding("store", Verdict::Bad, "no place for it", "set HOME, or use --root DIR")];
        }
    };
    let store = finding("store", Verdict::Good, root.display().to_string(), "");
    let subject = "a container";
    if facts.user_namespaces.is_err() {
        return vec![
            store,
            finding(subject, Verdict::Bad, "not tried", "first make user namespaces possible"),
        ];
    }
    // It may not have been made yet.
    let folder = root.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let tried = match userns::enter() {
        Ok(_) => trial(folder),
        Err(error) => {
            let advice = "see what is said about user namespaces and subordinate ids";
            return vec![store, finding(subject, Verdict::Bad, error.to_string(), advice)];
        }
    };
    let container = match tried {
        Ok(mechanism) => finding(subject, Verdict::Good, format!("works, its layers {}", how(mechanism)), ""),
        Err(error) => finding(subject, Verdict::Bad, format!("failed to {error}"), what_helps(&error)),
    };
    vec![store, container]
}

fn how(mechanism: Mechanism) -> &'static str {
    match mechanism {
        Mechanism::Descriptors => "mounted by descriptors",
        Mechanism::Names => "mounted by names",
        Mechanism::MountCall => "mounted by mount(2)",
    }
}

fn what_helps(error: &TrialError) -> String {
    let text = error.to_string();
    let inside = "inside of a container: its runtime has to leave /proc and /sys uncovered (docker: --privileged or \
                  --security-opt systempaths=unconfined)";
    match error {
        TrialError::Folder { .. } => "use a folder of your own: --root DIR or RIMG_ROOT".to_owned(),
        TrialError::Marks { .. } => {
            "use a store on another file system (--root DIR or RIMG_ROOT): ext4, XFS and Btrfs take extended \
             attributes, tmpfs those of users since Linux 6.6"
                .to_owned()
        }
        TrialError::Overlay(_) => {
            "as root: modprobe overlay; a store cannot be on an overlay or a network file system (--root DIR or RIMG_ROOT)"
                .to_owned()
        }
        TrialError::Sandbox(_) if text.contains("procfs") || text.contains("sysfs") => inside.to_owned(),
        TrialError::Sandbox(_) if text.contains("filter") => {
            "the kernel has to have CONFIG_SECCOMP_FILTER".to_owned()
        }
        TrialError::Sandbox(_) | TrialError::Payload(_) => {
            "the system, or a container that rimg runs in, refuses this operation".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_apparmor_profile_names_this_program_alone() {
        assert_eq!(
            apparmor_profile(Path::new("/home/a b/{x}/rimg")),
            "abi <abi/4.0>,\nprofile rimg \"/home/a b/\\{x\\}/rimg\" flags=(unconfined) {\n  userns,\n}"
        );
    }

    #[test]
    fn each_cause_is_named_with_what_helps() {
        let told = |cause: Cause| {
            let refused = NoUserNamespace { step: UserNamespaceStep::Make, errno: 1, cause };
            format!("{}\n{}", refusal(&refused), remedy(&refused.cause, Path::new("/usr/bin/rimg")))
        };
        assert!(told(Cause::NoneAllowed).contains("user.max_user_namespaces=15000"));
        assert!(told(Cause::RootOnly).contains("kernel.unprivileged_userns_clone=1"));
        let restricted = told(Cause::AppArmorRestriction);
        assert!(restricted.contains("profile rimg \"/usr/bin/rimg\" flags=(unconfined)"), "{restricted}");
        assert!(!restricted.contains("restrict_unprivileged_userns=0"), "{restricted}");
        assert!(
            told(Cause::AppArmorProfile("x (enforce)".to_owned())).contains("AppArmor profile x (enforce)")
        );
    }
}
