pub mod forgetful;
