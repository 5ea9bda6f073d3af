//! The hosts of a URL, each by itself: one that takes connections and says nothing
//! would keep the others from being tried.

use tokio_postgres::{
    Config,
    config::{Host, LoadBalanceHosts},
};
use uuid::Uuid;

/// The same configuration for each of its hosts, in the order in which they are to be
/// tried; itself alone if it names none, or not as many addresses or ports.
pub(super) fn each(config: &Config) -> Vec<Config> {
    let (hosts, addresses, ports) = (
        config.get_hosts(),
        config.get_hostaddrs(),
        config.get_ports(),
    );
    let fits = |count: usize, others: usize| others <= 1 || others == count;
    let is_paired = addresses.is_empty() || addresses.len() == hosts.len();
    if !is_paired || !fits(hosts.len(), ports.len()) || hosts.is_empty() {
        return vec![config.clone()];
    }
    let alone = |(at, host): (usize, &Host)| {
        let mut alone = of_no_host(config);
        match host {
            Host::Tcp(name) => alone.host(name),
            Host::Unix(path) => alone.host_path(path),
        };
        if let Some(address) = addresses.get(at) {
            alone.hostaddr(*address);
        }
        if let Some(port) = ports.get(at).or(ports.first()) {
            alone.port(*port);
        }
        alone
    };
    let mut all: Vec<Config> = hosts.iter().enumerate().map(alone).collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        all.sort_by_cached_key(|_| Uuid::new_v4());
    }
    all
}

/// All but hosts, addresses and ports, which a configuration cannot be rid of.
fn of_no_host(config: &Config) -> Config {
    let mut rest = Config::new();
    if let Some(user) = config.get_user() {
        rest.user(user);
    }
    if let Some(password) = config.get_password() {
        rest.password(password);
    }
    if let Some(name) = config.get_dbname() {
        rest.dbname(name);
    }
    if let Some(options) = config.get_options() {
        rest.options(options);
    }
    if let Some(name) = config.get_application_name() {
        rest.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        rest.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        rest.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        rest.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        rest.keepalives_retries(retries);
    }
    rest.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding())
        .load_balance_hosts(config.get_load_balance_hosts());
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        text.parse().unwrap()
    }

    #[test]
    fn each_host_has_its_port_and_address_and_all_that_is_common() {
        let common = "user=u password=p dbname=d options=-cx=y application_name=a \
                      sslmode=require sslnegotiation=direct connect_timeout=2 tcp_user_timeout=3 \
                      keepalives=0 keepalives_idle=4 keepalives_interval=5 keepalives_retries=6 \
                      target_session_attrs=read-write channel_binding=require";
        let one = |rest: &str| config(&format!("{common} {rest}"));
        assert_eq!(
            each(&one("host=a,/b hostaddr=10.0.0.1,10.0.0.2 port=1,2")),
            [
                one("host=a hostaddr=10.0.0.1 port=1"),
                one("host=/b hostaddr=10.0.0.2 port=2")
            ]
        );
        assert_eq!(
            each(&one("host=a,b port=7")),
            [one("host=a port=7"), one("host=b port=7")]
        );
        assert_eq!(each(&one("host=a,b")), [one("host=a"), one("host=b")]);
    }

    #[test]
    fn what_does_not_fit_is_left_for_the_library_to_refuse() {
        for text in [
            "user=u",
            "host=a,b port=1,2,3",
            "host=a,b hostaddr=10.0.0.1",
        ] {
            assert_eq!(each(&config(text)), [config(text)]);
        }
    }

    #[test]
    fn hosts_that_share_a_load_are_tried_in_any_order() {
        let config = config("host=a,b,c load_balance_hosts=random");
        let firsts: std::collections::BTreeSet<String> = (0..200)
            .map(|_| format!("{:?}", each(&config)[0].get_hosts()))
            .collect();
        assert_eq!(firsts.len(), 3);
    }
}
