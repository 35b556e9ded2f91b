package ctl

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"github.com/tinykv/tinykv/pkg/security"
)

// expirySoon is for how long a certificate should still be good.
const expirySoon = 30 * 24 * time.Hour

func (a *app) certCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cert", Short: "Make and check the certificates of a cluster",
		Long: `One authority per cluster: its key (ca.key) makes certificates, and is best kept off the servers.

  tinyctl cert create-ca
  tinyctl cert create-node kv1.example.com 10.0.0.1    on each server, with the names it is reached under
  tinyctl cert create-client app                        for programs
  tinyctl cert create-admin ops                         for people who change the cluster

Servers with the lists cert-node-cn, cert-admin-cn and cert-client-cn give roles by common name:
show and check take them from a configuration file (--config).`,
	}
	dir := cmd.PersistentFlags().String("certs-dir", "certs",
		"directory of the authority and the certificates")
	life := cmd.PersistentFlags().Duration("lifetime", 0,
		"how long a certificate is good (default and most: five years)")
	create := func(
		use, short string, check cobra.PositionalArgs,
		request func(argv []string) security.CertRequest,
	) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: args(check),
			RunE: func(_ *cobra.Command, argv []string) error {
				r := request(argv)
				r.Life = *life
				f, err := security.CreateCert(*dir, r)
				if err != nil {
					return err
				}
				return tellCert(a, f.Cert, f.Key)
			}}
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "create-ca", Short: "Make the authority: ca.crt and ca.key",
			Args: args(cobra.NoArgs),
			RunE: func(*cobra.Command, []string) error {
				if err := security.CreateCA(*dir); err != nil {
					return err
				}
				return tellCert(a, filepath.Join(*dir, security.CACertFile),
					filepath.Join(*dir, security.CAKeyFile))
			},
		},
		create("create-node HOST...",
			"Make the certificate of a server, for the names and IPs under which it is reached",
			cobra.MinimumNArgs(1), func(argv []string) security.CertRequest {
				return security.CertRequest{
					Name: "node-" + strings.NewReplacer(":", "-", "*", "any").Replace(argv[0]),
					Role: security.RoleNode, Hosts: argv,
				}
			}),
		create("create-client NAME", "Make the certificate of a program that reads and writes",
			cobra.ExactArgs(1),
			func(argv []string) security.CertRequest {
				return security.CertRequest{Name: argv[0], Role: security.RoleClient}
			}),
		create("create-admin NAME", "Make the certificate of somebody who may change the cluster",
			cobra.ExactArgs(1),
			func(argv []string) security.CertRequest {
				return security.CertRequest{Name: argv[0], Role: security.RoleAdmin}
			}),
	)
	cmd.AddCommand(withLists(a.certShowCmd()), withLists(a.certCheckCmd(dir)))
	return cmd
}

// withLists adds the flag that readCertLists reads.
func withLists(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("config", "",
		"configuration of a store or scheduler, whose lists give roles by common name")
	return cmd
}

// tellCert names the files of a certificate that was made.
func tellCert(a *app, cert, key string) error {
	if a.output == "json" {
		return a.json(map[string]string{"cert": cert, "key": key})
	}
	_, err := fmt.Fprintf(a.stdout, "%s and %s\n", cert, key)
	return err
}

// certJSON is a certificate.
type certJSON struct {
	File     string   `json:"file"`
	Name     string   `json:"name"`
	CA       bool     `json:"ca"`
	Roles    []string `json:"roles"`
	Hosts    []string `json:"hosts"`
	NotAfter string   `json:"not_after"`
	Fault    string   `json:"fault,omitempty"`
}

// certLists are the lists of names of a server.
type certLists struct {
	CertAllowedCN []string `toml:"cert-allowed-cn"`
	CertNodeCN    []string `toml:"cert-node-cn"`
	CertAdminCN   []string `toml:"cert-admin-cn"`
	CertClientCN  []string `toml:"cert-client-cn"`
}

// readCertLists reads the lists of the flag's file, if it is set.
func readCertLists(cmd *cobra.Command) (*certLists, error) {
	var conf struct {
		Security certLists `toml:"security"`
	}
	file, err := cmd.Flags().GetString("config")
	if err == nil && file != "" {
		if _, err = toml.DecodeFile(file, &conf); err == nil {
			err = conf.Security.names().Validate()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("--config %s: %w", file, err)
	}
	return &conf.Security, nil
}

func (l *certLists) names() *security.Names {
	return &security.Names{Node: l.CertNodeCN, Admin: l.CertAdminCN, Client: l.CertClientCN}
}

// refuses says why a server with these lists does not let a certificate in; "" if it does.
func (l *certLists) refuses(c *x509.Certificate) string {
	if c.IsCA {
		return ""
	}
	if err := l.names().Check(c, l.CertAllowedCN); err != nil {
		return err.Error()
	}
	return ""
}

func describeCert(file string, c *x509.Certificate, lists *certLists) certJSON {
	out := certJSON{
		File: file, Name: c.Subject.CommonName, CA: c.IsCA, Roles: []string{}, Hosts: []string{},
		NotAfter: c.NotAfter.UTC().Format(time.RFC3339),
	}
	for _, r := range lists.names().RolesOf(c) {
		out.Roles = append(out.Roles, string(r))
	}
	out.Hosts = append(out.Hosts, c.DNSNames...)
	for _, ip := range c.IPAddresses {
		out.Hosts = append(out.Hosts, ip.String())
	}
	return out
}

func (a *app) certShowCmd() *cobra.Command {
	return &cobra.Command{
		Use: "show FILE...", Short: "Show what certificates are for and until when",
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, files []string) error {
			lists, err := readCertLists(cmd)
			if err != nil {
				return err
			}
			rows := []certJSON{}
			for _, f := range files {
				certs, err := security.ReadCerts(f)
				if err != nil {
					return err
				}
				for _, c := range certs {
					row := describeCert(f, c, lists)
					row.Fault = lists.refuses(c)
					rows = append(rows, row)
				}
			}
			return a.printCerts(rows)
		},
	}
}

func (a *app) printCerts(rows []certJSON) error {
	if a.output == "json" {
		return a.json(rows)
	}
	var out [][]string
	for _, r := range rows {
		what := strings.Join(r.Roles, " ")
		if r.CA {
			what = "authority"
		} else if what == "" && r.Fault != "" {
			what = "no role"
		} else if what == "" {
			what = "any role"
		}
		out = append(out,
			[]string{r.File, r.Name, what, strings.Join(r.Hosts, " "), r.NotAfter, r.Fault})
	}
	return a.table([]string{"FILE", "NAME", "FOR", "HOSTS", "GOOD UNTIL", "FAULT"}, out)
}

func (a *app) certCheckCmd(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check all certificates of a directory; exit code 1 if one is not good, or not for 30 more days", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			lists, err := readCertLists(cmd)
			if err != nil {
				return err
			}
			rows, err := checkCerts(*dir, lists, time.Now())
			if err != nil {
				return err
			}
			if err := a.printCerts(rows); err != nil {
				return err
			}
			for _, r := range rows {
				if r.Fault != "" {
					return errSilent
				}
			}
			return nil
		},
	}
}

// checkCerts looks at every certificate of a directory.
func checkCerts(dir string, lists *certLists, now time.Time) ([]certJSON, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.crt"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no certificates (*.crt)", dir)
	}
	authorities, err := security.ReadCerts(filepath.Join(dir, security.CACertFile))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	for _, c := range authorities {
		roots.AddCert(c)
	}
	var rows []certJSON
	for _, f := range files {
		certs, err := security.ReadCerts(f)
		if err != nil {
			rows = append(rows,
				certJSON{File: f, Roles: []string{}, Hosts: []string{}, Fault: err.Error()})
			continue
		}
		for i, c := range certs {
			row := describeCert(f, c, lists)
			row.Fault = certFault(f, c, i == 0, roots, now)
			if row.Fault == "" && i == 0 {
				row.Fault = lists.refuses(c)
			}
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// certFault says what is wrong with a certificate, or with the key beside it; "" if nothing is.
func certFault(
	file string, c *x509.Certificate, own bool, roots *x509.CertPool, now time.Time,
) string {
	if own && !c.IsCA {
		f := security.Files{Cert: file, Key: strings.TrimSuffix(file, ".crt") + ".key"}
		if _, err := f.Config(); err != nil {
			return err.Error()
		}
		if info, err := os.Stat(f.Key); err == nil && info.Mode().Perm()&0o077 != 0 {
			return fmt.Sprintf("%s can be read by others: chmod 600", f.Key)
		}
	}
	_, err := c.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "is not good now: from " + c.NotBefore.UTC().Format(time.RFC3339) + " to " +
			c.NotAfter.UTC().Format(time.RFC3339)
	case err != nil:
		return err.Error()
	case c.NotAfter.Before(now.Add(expirySoon)):
		return fmt.Sprintf("is good for %d more days only", int(c.NotAfter.Sub(now).Hours()/24))
	}
	return ""
}
