# guest/ runs inside of a virtual machine only
collect_ignore = ["guest"]
