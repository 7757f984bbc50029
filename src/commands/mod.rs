//! The commands, a thin file each: arguments in, library calls, what people read out.

pub(crate) mod build;
pub(crate) mod cat;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod fsck;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod inspect;
pub(crate) mod load;
pub(crate) mod login;
pub(crate) mod ls;
pub(crate) mod prune;
pub(crate) mod pull;
pub(crate) mod push;
pub(crate) mod remote;
pub(crate) mod rmi;
pub(crate) mod rootless;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod serve;
pub(crate) mod snapshots;
pub(crate) mod tag;
pub(crate) mod tree;
pub(crate) mod version;

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::session::Session;

/// Runs the command and gives its exit code.
pub(crate) fn run(cli: Cli) -> Result<u8, Failure> {
    let session = Session::new(cli.globals);
    let done = |result: Result<(), Failure>| result.map(|()| 0);
    match cli.command {
        Command::Build(args) => done(build::run(&session, args)),
        Command::Run(args) => run::run(&session, args),
        Command::Push(args) => done(push::run(&session, args)),
        Command::Pull(args) => done(pull::run(&session, args)),
        Command::Serve(args) => done(serve::run(&session, args)),
        Command::Images(args) => done(images::run(&session, args)),
        Command::Tag(args) => done(tag::run(&session, args)),
        Command::Rmi(args) => done(rmi::run(&session, args)),
        Command::Inspect(args) => done(inspect::run(&session, args)),
        Command::History(args) => done(history::run(&session, args)),
        Command::Ls(args) => done(ls::run(&session, args)),
        Command::Cat(args) => done(cat::run(&session, args)),
        Command::Save(args) => done(save::run(&session, args)),
        Command::Load(args) => done(load::run(&session, args)),
        Command::Import(args) => done(import::run(&session, args)),
        Command::Login(args) => done(login::login(&session, args)),
        Command::Logout(args) => done(login::logout(&session, args)),
        Command::Prune(args) => done(prune::run(&session, args)),
        Command::Fsck(args) => fsck::run(&session, args),
        Command::Doctor(args) => doctor::run(&session, args),
        Command::Version(args) => done(version::run(&session, args)),
        Command::Completions(args) => done(completions::run(&session, args)),
    }
}
